"""OpenVINO on the graph that ONNX Runtime is given: in fp32, as it chooses itself, and in 8 bits by NNCF."""

from pathlib import Path
from typing import Any

from benchmarks import corpus
from benchmarks.peers import Embed, FloatArray, Setup, onnx_peer
from benchmarks.peers.batching import Ids, batched, load_tokenizer, padded

_MAX_TOKENS = 512  # padded tokens of a batch, as the other peers have them
_FORM = "openvino"
_NUM_CALIBRATION_TEXTS = 128
_HINTS = {"wide": "LATENCY", "streams": "THROUGHPUT"}


def prepare(setup: Setup) -> None:
    """The exported graph, and a copy of it with activations and weights in 8 bits, calibrated on passages."""
    onnx_peer.prepare(setup)
    target = setup.converted(_FORM) / "int8.xml"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _quantize(setup, target)


def load(setup: Setup, layout: str, precision: str = "f32") -> Embed:
    """One request on all threads ("wide"), or as many at once as there are threads ("streams").

    `precision`: "f32"; "default", which is what OpenVINO chooses when it is not told: bf16 on CPUs with AMX; "int8",
    and what is not quantised as by default.
    """
    import openvino

    core = openvino.Core()
    path = setup.converted(_FORM) / "int8.xml" if precision == "int8" else _raw_graph(setup)
    config: dict[str, Any] = {"PERFORMANCE_HINT": _HINTS[layout], "INFERENCE_NUM_THREADS": setup.num_threads}
    if layout == "streams":
        config["NUM_STREAMS"] = setup.num_threads
    if precision == "f32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    model = core.compile_model(core.read_model(path), "CPU", config)
    workers = setup.workers(layout)
    requests = [model.create_infer_request() for _ in range(workers)]

    def forward(ids: Ids) -> FloatArray:
        request = requests.pop()
        try:
            vectors: FloatArray = request.infer(padded(ids), share_inputs=True)[0].copy()
        finally:
            requests.append(request)
        return vectors

    return batched(setup, forward, workers, _MAX_TOKENS)


def _raw_graph(setup: Setup) -> Path:
    return setup.converted(onnx_peer.FORM) / "raw.onnx"


def _quantize(setup: Setup, target: Path) -> None:
    import nncf
    import openvino

    tokenize = load_tokenizer(setup)
    texts = corpus.load(setup.checkpoint, setup.max_seq_len)["passages"].texts[:_NUM_CALIBRATION_TEXTS]
    model = openvino.Core().read_model(_raw_graph(setup))
    quantized = nncf.quantize(
        model,
        nncf.Dataset([padded([ids]) for ids in tokenize(texts)]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=_NUM_CALIBRATION_TEXTS,
    )
    openvino.save_model(quantized, target, compress_to_fp16=False)
