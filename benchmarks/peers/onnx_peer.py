"""ONNX Runtime on the encoder as transformers and torch.onnx export it, pooling and normalisation in the graph."""

import logging
import warnings
from pathlib import Path

import numpy as np

from benchmarks.peers import Embed, FloatArray, Setup
from benchmarks.peers.batching import Ids, batched

_MAX_TOKENS = 512  # padded tokens of a batch: larger ones fall out of the caches and are slower
_FORM = "onnx"


def prepare(setup: Setup) -> None:
    """Export the graph with torch, and make the fused one of it."""
    folder = setup.converted(_FORM)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "raw.onnx").exists():
        _export(setup.checkpoint, folder / "raw.onnx")
    if not (folder / "fused.onnx").exists():
        _fuse(setup.checkpoint, folder / "raw.onnx", folder / "fused.onnx")


def load(setup: Setup, layout: str, graph: str = "raw") -> Embed:
    """A session on which one thread, or one a core, runs batches, each with its share of the intra-op threads.

    `graph`: "raw" as exported; "fused" after ONNX Runtime's own transformer optimizer (fused attention, skip layer
    norm, bias GELU). The raw graph was found faster on batches, the fused one on a single text.
    """
    import onnxruntime

    workers = setup.workers(layout)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, setup.num_threads // workers)
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        str(setup.converted(_FORM) / f"{graph}.onnx"), options, providers=["CPUExecutionProvider"]
    )

    def forward(ids: Ids) -> FloatArray:
        input_ids = np.zeros((len(ids), max(map(len, ids))), np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = tokens
            attention_mask[row, : len(tokens)] = 1
        vectors: FloatArray = session.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})[0]
        return vectors

    return batched(setup, forward, workers, _MAX_TOKENS)


def _export(checkpoint: Path, target: Path) -> None:
    import torch
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float32)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden_states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
            pooled = (hidden_states * weights).sum(1) / weights.sum(1)
            normalized: torch.Tensor = pooled / pooled.norm(dim=1, keepdim=True).clamp(min=1e-12)
            return normalized

    attention_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    axes = {0: "batch", 1: "length"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation, and shapes that tracing makes constant
        torch.onnx.export(
            Embedder().eval(),
            (attention_mask * 100, attention_mask),
            str(target.with_suffix(".part")),
            input_names=["input_ids", "attention_mask"],
            output_names=["embedding"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "embedding": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    target.with_suffix(".part").rename(target)


def _fuse(checkpoint: Path, raw: Path, target: Path) -> None:
    from onnxruntime.transformers import optimizer
    from transformers import AutoConfig

    logging.getLogger("onnxruntime").setLevel(logging.ERROR)
    config = AutoConfig.from_pretrained(checkpoint)
    model = optimizer.optimize_model(
        str(raw),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        opt_level=0,
        use_gpu=False,
    )
    model.save_model_to_file(str(target))
