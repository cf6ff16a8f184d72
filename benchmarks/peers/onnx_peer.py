"""ONNX Runtime on the encoder as transformers and torch.onnx export it, pooling and normalisation in the graph."""

import logging
import warnings
from pathlib import Path

from benchmarks import report
from benchmarks.peers import Embed, FloatArray, Setup
from benchmarks.peers.batching import Ids, batched, padded

_MAX_TOKENS = 512  # padded tokens of a batch: larger ones fall out of the caches and are slower
FORM = "onnx"


def prepare(setup: Setup) -> None:
    """Export the graph with torch, make the fused one of it, and the one in 8 bits of that."""
    folder = setup.converted(FORM)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "raw.onnx").exists():
        _export(setup, folder / "raw.onnx")
    if not (folder / "fused.onnx").exists():
        _fuse(setup.checkpoint, folder / "raw.onnx", folder / "fused.onnx")
    if not (folder / "int8.onnx").exists():
        _quantize(folder / "fused.onnx", folder / "int8.onnx")


def load(setup: Setup, layout: str, graph: str = "raw") -> Embed:
    """A session on which one thread, or one a core, runs batches, each with its share of the intra-op threads.

    `graph`: "raw" as exported; "fused" after ONNX Runtime's own transformer optimizer (fused attention, skip layer
    norm, bias GELU); "int8" the fused one with dynamic 8-bit activations and a scale for each channel of a weight. The
    raw graph was found faster on batches, the fused one on a single text.
    """
    import onnxruntime

    workers = setup.workers(layout)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, setup.num_threads // workers)
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        str(setup.converted(FORM) / f"{graph}.onnx"), options, providers=["CPUExecutionProvider"]
    )

    def forward(ids: Ids) -> FloatArray:
        vectors: FloatArray = session.run(None, padded(ids))[0]
        return vectors

    return batched(setup, forward, workers, _MAX_TOKENS)


def _export(setup: Setup, target: Path) -> None:
    import torch
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(setup.checkpoint, attn_implementation="eager", dtype=torch.float32)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden_states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            pooled = hidden_states[:, 0]
            if setup.pooling == "mean":
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


def _quantize(fused: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # NOTE: ranges are whole where the CPU sums 8-bit products without saturation (VNNI), else a bit narrower.
    reduce_range = "avx512_vnni" not in report.machine()["flags"]
    quantize_dynamic(
        fused,
        target,
        per_channel=True,
        reduce_range=reduce_range,
        weight_type=QuantType.QInt8,
        # Of what the fused operators give, the shape inference of ONNX does not know the type.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
