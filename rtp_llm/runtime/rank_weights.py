"""A decoder's weights cut for tensor parallelism (Shoeybi et al. 2019, Megatron-LM).

Queries, keys, values, gate and up are cut by rows, so that a rank has whole heads and its part of the MLP; out and down
are cut by columns, so that each rank has a part of every sum. What is left (embeddings, norms) every rank has.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtp_llm.checkpoint import TensorInfo, TensorSource
from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.errors import CheckpointError, ConfigError
from rtp_llm.models import model_class
from rtp_llm.models.decoder import Decoder
from rtp_llm.models.decoder_config import DecoderConfig

_BY_ROWS = re.compile(r"(q|k|v|gate|up)_proj\.(weight|bias)$")
_BY_COLUMNS = re.compile(r"(o|down)_proj\.weight$")
_DECODERS = (
    "qwen2", "qwen3", "qwen_2", "qwen_2_embedding", "qwen_3", "llama", "mistral", "eurobert", "gemma", "gemma2",
    "gemma3_text",
)  # fmt: skip
# The sizes that the ranks share out.
_SHARED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def check(model_type: str, hf: Mapping[str, Any], size: int) -> None:
    """ConfigError where the model cannot be cut into `size` equal parts; CheckpointError as its `read_config`."""
    if model_type not in _DECODERS:
        raise ConfigError(f"tp_size {size}: {model_type} is not cut; only {', '.join(_DECODERS)} are", param="tp_size")
    config = _config(model_type, hf)
    for name in _SHARED:
        count = getattr(config, name)
        if count % size:
            raise ConfigError(f"tp_size {size} does not divide the checkpoint's {name}, {count}", param="tp_size")


def config_of_rank(model_type: str, hf: Mapping[str, Any], size: int) -> dict[str, Any]:
    """config.json of a model that is one of `size` parts: fewer heads, a narrower MLP; `check` has passed."""
    config = _config(model_type, hf)
    return {**hf, **{name: getattr(config, name) // size for name in _SHARED}, "head_dim": config.head_dim}


def _config(model_type: str, hf: Mapping[str, Any]) -> DecoderConfig:
    """As the model reads it, with its own defaults for what config.json leaves out."""
    decoder = model_class(model_type)
    assert issubclass(decoder, Decoder)
    return decoder.read_config(hf)


class RankSource:
    """One rank's part of a checkpoint; of a tensor that is cut, no more than the part is read."""

    def __init__(self, source: TensorSource, rank: int, size: int) -> None:
        self.path: Path = source.path
        self._source, self._rank, self._size = source, rank, size
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(info.dtype, self._shape(name, info.shape)) for name, info in source.tensors.items()
        }

    def read(self, name: str) -> FloatArray:
        axis = _axis(name)
        if axis is None:
            return self._source.read(name)
        count = self.tensors[name].shape[axis]
        return self._source.read_part(name, axis, self._rank * count, (self._rank + 1) * count)

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        assert _axis(name) is None, name
        return self._source.read_part(name, axis, start, stop)

    def read_int8(self, name: str) -> Int8Array:
        raise CheckpointError(
            f"{self.path}: a checkpoint in 8 bits is not for GPUs; take the one that it was made from"
        )

    def file(self, name: str) -> Path:
        return self._source.file(name)

    def close(self) -> None:
        self._source.close()

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = _axis(name)
        if axis is None or axis >= len(shape) or shape[axis] % self._size:
            return shape  # a shape that does not fit is an error of whoever binds it
        return (*shape[:axis], shape[axis] // self._size, *shape[axis + 1 :])


def _axis(name: str) -> int | None:
    """The axis that a tensor is cut along."""
    if _BY_ROWS.search(name):
        return 0
    return 1 if _BY_COLUMNS.search(name) else None
