"""rtp_llm itself, through its public Python API."""

from benchmarks.peers import Embed, Setup


def prepare(setup: Setup) -> None:
    """Nothing: the checkpoint is read as it is."""


def load(setup: Setup, quantization: str = "none", act_type: str = "auto") -> Embed:
    """`rtp_llm.Model` on the checkpoint, with every other option at its default."""
    from rtp_llm import Model

    model = Model(
        str(setup.checkpoint),
        max_seq_len=setup.max_seq_len,
        num_threads=setup.num_threads,
        quantization=quantization,
        act_type=act_type,
    )
    return model.embed
