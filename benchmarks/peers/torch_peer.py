"""sentence-transformers on torch: the reference that most people run."""

from benchmarks.peers import Embed, FloatArray, Setup


def prepare(setup: Setup) -> None:
    """Nothing: the checkpoint is read as it is."""


def load(setup: Setup, batch_size: int) -> Embed:
    """SentenceTransformer.encode, which sorts by length itself; torch uses all threads on one batch."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(setup.num_threads)
    model = SentenceTransformer(str(setup.checkpoint), device="cpu")
    model.max_seq_length = setup.max_seq_len

    def embed(texts: list[str]) -> FloatArray:
        vectors: FloatArray = model.encode(
            texts, batch_size=batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return vectors

    return embed
