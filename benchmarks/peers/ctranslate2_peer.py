"""CTranslate2, float32 or int8: the fastest peer on x86 CPUs that we know of."""

import numpy as np

from benchmarks.peers import Embed, FloatArray, Setup
from benchmarks.peers.batching import Ids, batched

_MAX_TOKENS = 512  # padded tokens of a batch: larger ones fall out of the caches and are slower
_FORM = "ctranslate2"


def prepare(setup: Setup) -> None:
    """Convert with CTranslate2's own converter for transformers checkpoints."""
    if not (setup.converted(_FORM) / "model.bin").exists():
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(setup.checkpoint)).convert(str(setup.converted(_FORM)), force=True)


def load(setup: Setup, layout: str, compute_type: str = "float32") -> Embed:
    """An encoder of one wide or several single-threaded workers; pooling and L2 normalisation in numpy."""
    import ctranslate2

    workers, pooling = setup.workers(layout), setup.pooling
    encoder = ctranslate2.Encoder(
        str(setup.converted(_FORM)),
        device="cpu",
        inter_threads=workers,
        intra_threads=max(1, setup.num_threads // workers),
        compute_type=compute_type,
    )

    def forward(ids: Ids) -> FloatArray:
        hidden_states = np.asarray(encoder.forward_batch(ids).last_hidden_state)  # [B, S, H]
        pooled = hidden_states[:, 0]
        if pooling == "mean":
            pooled = np.stack([rows[: len(row)].mean(axis=0) for rows, row in zip(hidden_states, ids, strict=True)])
        lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
        vectors: FloatArray = pooled / np.maximum(lengths, 1e-12)
        return vectors

    return batched(setup, forward, workers, _MAX_TOKENS)
