"""The shapes that a GPU is measured with: random weights made on the device, ours and transformers', and their work."""

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtp_llm.checkpoint import Parameter, TensorInfo
from rtp_llm.core import FloatArray, Int8Array, Item, TaskType
from rtp_llm.models import MODELS, Model, bert, decoder, qwen
from rtp_llm.ops.device_ops import make_ops
from rtp_llm.ops.torch_ops import DTYPES, TorchOps
from rtp_llm.ops.triton_ops import TritonOps
from rtp_llm.runtime.token_budget import TokenBudget
from rtp_llm.runtime.torch import TorchRuntime
from rtp_llm.runtime.torch_device import open_device
from rtp_llm.tasks.dense import Dense, PoolingModes

_SCALE = 0.02


def _encoder(hidden: int, layers: int, heads: int, wide: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "bert", "vocab_size": 30522, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": wide, "max_position_embeddings": 512, **more,
    }  # fmt: skip


def _decoder(hidden: int, layers: int, heads: int, kv_heads: int, wide: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen3", "vocab_size": 151669, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 128, "intermediate_size": wide,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, **more,
    }  # fmt: skip


# In the order in which they are measured: what has a bar to pass first.
SHAPES: dict[str, dict[str, Any]] = {
    "bge-base": _encoder(768, 12, 12, 3072),
    "bge-large": _encoder(1024, 24, 16, 4096),
    "Qwen3-0.6B": _decoder(1024, 28, 16, 8, 3072),
    "Qwen3-8B": _decoder(4096, 36, 32, 8, 12288),
    "bge-small": _encoder(384, 12, 12, 1536),
    "bge-m3": _encoder(
        1024, 24, 16, 4096, model_type="xlm-roberta", vocab_size=250002, max_position_embeddings=8194, pad_token_id=1
    ),
    "Qwen3-4B": _decoder(2560, 36, 32, 8, 9728),
}
TINY: dict[str, dict[str, Any]] = {
    "tiny-bert": _encoder(32, 2, 4, 64, vocab_size=500),
    "tiny-qwen3": _decoder(32, 2, 4, 2, 48, vocab_size=500, head_dim=16, max_position_embeddings=512),
}


@dataclass(frozen=True)
class Machine:
    """Where it runs: a GPU, or for a dry run the CPU; `checkpoint` is MiniLM's folder, where one was named."""

    device: str
    dry_run: bool
    checkpoint: str = ""

    def dtype(self, hf: Mapping[str, Any]) -> str:
        """fp16 for encoders, bf16 for decoders; a CPU has fp32."""
        if self.device == "cpu":
            return "fp32"
        return "bf16" if hf["model_type"] == "qwen3" else "fp16"

    @property
    def shapes(self) -> dict[str, dict[str, Any]]:
        """What is measured."""
        return TINY if self.dry_run else SHAPES

    @property
    def has_fp8(self) -> bool:
        """Of NVIDIA's from sm_89 on."""
        return torch.version.hip is None and torch.cuda.get_device_capability(self.device) >= (8, 9)

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give back what is held for later use, what only a cycle of references holds included."""
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Work:
    """The matrix products of a model's layer, as (rows of the weight, columns), and their number of layers."""

    products: tuple[tuple[int, int], ...]
    num_layers: int
    attention: int

    @classmethod
    def of(cls, hf: Mapping[str, Any]) -> "Work":
        hidden, wide, heads = hf["hidden_size"], hf["intermediate_size"], hf["num_attention_heads"]
        head_dim = hf.get("head_dim", hidden // heads)
        kv_heads, is_decoder = hf.get("num_key_value_heads", heads), hf["model_type"] == "qwen3"
        qkv = (heads + 2 * kv_heads) * head_dim
        up = 2 * wide if is_decoder else wide
        products = ((qkv, hidden), (hidden, heads * head_dim), (up, hidden), (hidden, wide))
        return cls(products, hf["num_hidden_layers"], (2 if is_decoder else 4) * heads * head_dim)

    def flops(self, lengths: Sequence[int]) -> float:
        """Of sequences of these lengths; a causal model's attention is half a bidirectional one's."""
        linear = 2 * sum(math.prod(shape) for shape in self.products) * sum(lengths)
        return float(self.num_layers * (linear + self.attention * sum(length**2 for length in lengths)))


def runtime(machine: Machine, hf: Mapping[str, Any], dtype: str = "") -> TorchRuntime:
    """Our runtime with random weights, which never were on the host."""
    ops = make_ops("auto", machine.device, dtype or machine.dtype(hf))
    return with_model(machine, hf, build(hf, ops), ops)


def with_model(
    machine: Machine, hf: Mapping[str, Any], model: Model, ops: TorchOps, graph_bytes: int = 1 << 30
) -> TorchRuntime:
    """A runtime around a model, pooled as `pooling_of`."""
    ours = TorchRuntime(
        model_type=hf["model_type"],
        model=model,
        ops=ops,
        device=open_device(machine.device),
        budget=TokenBudget(),
        graph_bytes=graph_bytes,
    )
    mode: Any = pooling_of(hf)
    ours.tasks = {TaskType.DENSE: Dense(PoolingModes((mode,)), [], model.hidden_size)}
    ours.start(model.max_positions)
    return ours


def pooling_of(hf: Mapping[str, Any]) -> str:
    """As the models of these shapes are published: bge's first token, Qwen3's last; of other encoders the mean."""
    if hf["model_type"] == "qwen3":
        return "lasttoken"
    return "cls" if hf in (SHAPES | TINY).values() else "mean"


def build(hf: Mapping[str, Any], ops: TorchOps) -> Model:
    """The architecture with random weights."""
    module, name = MODELS[hf["model_type"]]
    if hf["model_type"] == "qwen3":
        config: Any = qwen.Qwen3.read_config(hf)
        parameters = decoder.parameters(config)
    else:
        config = bert.BertConfig.from_hf(hf)
        parameters = bert.parameters(config)
    model: Model = getattr(import_module(module), name)(config, _Shapes(parameters), OnDevice(ops))
    return model


class _Shapes(Mapping[str, FloatArray]):
    """Arrays that have a shape and no memory."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = parameters

    def __getitem__(self, name: str) -> FloatArray:
        return np.broadcast_to(np.float32(0), self._parameters[name].shape)

    def matrix(self, name: str) -> FloatArray:
        return self[name]

    def sources(self, name: str) -> tuple[str, ...]:
        return self._parameters[name].sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


class OnDevice:
    """Makes random weights of a shape where the ops want them; arrays with numbers are the ops' own affair."""

    def __init__(self, ops: TorchOps) -> None:
        self._ops = ops
        self._random = torch.Generator(device=ops.device).manual_seed(0)

    def matrix(self, weight: FloatArray) -> Any:
        values = self._values(weight)
        return self._ops.narrowed(values) if isinstance(self._ops, TritonOps) else values

    def vector(self, values: FloatArray) -> torch.Tensor:
        return torch.ones(values.shape, dtype=self._ops.dtype, device=self._ops.device)

    def table(self, rows: FloatArray) -> torch.Tensor:
        return self._ops.table(rows) if any(rows.strides) else self._values(rows)

    def _values(self, weight: FloatArray) -> torch.Tensor:
        values = torch.empty(weight.shape, dtype=self._ops.dtype, device=self._ops.device)
        return values.normal_(0, _SCALE, generator=self._random)


def peer(machine: Machine, hf: Mapping[str, Any], dtype: str = "") -> Any:
    """transformers' own model with random weights, made on the device; sdpa."""
    from transformers import AutoConfig, AutoModel, set_seed

    set_seed(0)
    config = AutoConfig.for_model(**hf)
    wanted = DTYPES[dtype or machine.dtype(hf)]
    make: Any = AutoModel.from_config
    with torch.device(machine.device):
        return make(config, dtype=wanted, attn_implementation="sdpa").eval()


class StateDict:
    """Weights of a torch model as the checkpoint's reader gives them."""

    path = Path("state_dict")

    def __init__(self, model: Any) -> None:
        self._state = model.state_dict()
        self.tensors = {name: TensorInfo("fp32", tuple(tensor.shape)) for name, tensor in self._state.items()}

    def read(self, name: str) -> FloatArray:
        values: Any = self._state[name].float().cpu().numpy()
        return np.asarray(values, np.float32)

    def read_int8(self, name: str) -> Int8Array:
        raise NotImplementedError("all tensors are floats")

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        return np.asarray(self.read(name).take(range(start, stop), axis), np.float32)

    def file(self, name: str) -> Path:
        return self.path

    def close(self) -> None:
        """There is no file."""


def items(hf: Mapping[str, Any], mean_length: int, num_tokens: int, seed: int = 0) -> list[Item]:
    """Random ids of about so many tokens in all; lengths from a half to one and a half of the mean."""
    random = np.random.default_rng(seed)
    longest = longest_of(hf)
    made: list[Item] = []
    left = num_tokens
    while left > 0 or not made:
        length = min(int(random.integers(max(mean_length // 2, 1), mean_length * 3 // 2 + 1)), longest)
        ids = random.integers(2, hf["vocab_size"], length).astype(np.int32)
        made.append(Item(ids, len(made), tasks=(TaskType.DENSE,)))
        left -= length
    return made


def longest_of(hf: Mapping[str, Any]) -> int:
    """The longest sequence that it can read."""
    limit: int = hf["max_position_embeddings"]
    return limit - 2 if hf["model_type"] == "xlm-roberta" else limit


def budget(hf: Mapping[str, Any]) -> int:
    """Tokens of a step: whole waves of 132 multiprocessors, fewer where the model is wide."""
    hidden = hf["hidden_size"]
    if hidden <= 64:
        return 256
    return 16_896 if hidden <= 1024 else 8_448 if hidden <= 2560 else 4_224
