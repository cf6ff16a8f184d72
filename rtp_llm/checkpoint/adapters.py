"""LoRA adapters (Hu et al. 2021) that stand beside the weights of a checkpoint, as torch's parametrizations name them.

Of a weight `X.weight` there are `X.parametrizations.weight.original` and, of all adapters together,
`X.parametrizations.weight.0.lora_A` and `lora_B`. Source: the authors' code of jina-embeddings-v3.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from rtp_llm.checkpoint.tensors import TensorInfo, TensorSource
from rtp_llm.checkpoint.weights import check_finite
from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.errors import CheckpointError

_ORIGINAL = ".parametrizations.weight.original"
_LEFT, _RIGHT = ".parametrizations.weight.0.lora_A", ".parametrizations.weight.0.lora_B"
_CHUNK = 8192  # rows of a table that are added to at once


class LowRank(NamedTuple):
    """What an adapter adds to a weight [N, K]: the product of `rows` [N, rank], scaled, and `columns` [rank, K]."""

    rows: FloatArray
    columns: FloatArray


class AdapterSource(TensorSource, Protocol):
    """A checkpoint's weights as they are, and what each of its adapters would add to them."""

    def low_rank(self, name: str, adapter: int) -> LowRank | None:
        """What the adapter of this number adds to a tensor; None: it leaves that as it is."""


def has_adapters(source: TensorSource) -> bool:
    """Whether its weights have adapters beside them."""
    return any(name.endswith(_ORIGINAL) for name in source.tensors)


def add_product(values: FloatArray, rows: FloatArray, columns: FloatArray, scaling: float) -> FloatArray:
    """[N, K] and, scaled, [N, rank] @ [rank, K] -> a new array [N, K], in fp32."""
    merged: FloatArray = np.array(values)
    for start in range(0, len(merged), _CHUNK):
        merged[start : start + _CHUNK] += (rows[start : start + _CHUNK] @ columns) * np.float32(scaling)
    return merged


class AdaptedSource:
    """The checkpoint's weights by their plain names, with one adapter's part added in fp32.

    adapter  its number; None: the weights as they were before there were adapters
    scaling  of the product of an adapter's two matrices: lora_alpha / lora_rank
    """

    def __init__(self, source: TensorSource, adapter: int | None, scaling: float) -> None:
        self.path: Path = source.path
        self._source, self._adapter, self._scaling = source, adapter, scaling
        self._stems = {
            f"{name.removesuffix(_ORIGINAL)}.weight": name.removesuffix(_ORIGINAL)
            for name in source.tensors
            if name.endswith(_ORIGINAL)
        }
        parts = {stem + part for stem in self._stems.values() for part in (_ORIGINAL, _LEFT, _RIGHT)}
        plain = {name: info for name, info in source.tensors.items() if name not in parts}
        own = {name: source.tensors[stem + _ORIGINAL] for name, stem in self._stems.items()}
        self.tensors: Mapping[str, TensorInfo] = {**plain, **own}

    def read(self, name: str) -> FloatArray:
        if name not in self._stems:
            return self._source.read(name)
        stem = self._stems[name]
        values = self._source.read(stem + _ORIGINAL)
        if self._adapter is None:
            return values
        rows, columns = self._factors(stem, values.shape, self._adapter)
        return add_product(values, rows, columns, self._scaling)

    def low_rank(self, name: str, adapter: int) -> LowRank | None:
        """As AdapterSource has it; CheckpointError for numbers that are not finite."""
        if name not in self._stems:
            return None
        rows, columns = self._factors(self._stems[name], self.tensors[name].shape, adapter)
        return LowRank(rows * np.float32(self._scaling), columns)

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        return np.ascontiguousarray(np.take(self.read(name), range(start, stop), axis))

    def read_int8(self, name: str) -> Int8Array:
        return self._source.read_int8(name)

    def file(self, name: str) -> Path:
        return self._source.file(self._stems[name] + _ORIGINAL if name in self._stems else name)

    def close(self) -> None:
        self._source.close()

    def _factors(self, stem: str, shape: tuple[int, ...], adapter: int) -> tuple[FloatArray, FloatArray]:
        """[N, rank] and [rank, K], whose product is added to a weight [N, K].

        Of a linear layer lora_B is the left one, of an embedding table lora_A.
        """
        for left, right in ((_RIGHT, _LEFT), (_LEFT, _RIGHT)):
            infos = [self._source.tensors.get(stem + part) for part in (left, right)]
            shapes = [info.shape[1:] if info else () for info in infos]
            if [part[:1] for part in shapes] == [shape[:1], shapes[0][1:]] and shapes[1][1:] == shape[1:]:
                return self._matrix(stem + left, adapter), self._matrix(stem + right, adapter)
        raise CheckpointError(f"{self.path}: {stem}{_LEFT} and lora_B do not fit its weight {list(shape)}")

    def _matrix(self, name: str, number: int) -> FloatArray:
        count = self._source.tensors[name].shape[0]
        if number >= count:
            raise CheckpointError(
                f"{self.path}: {name} has {count} adapters, but lora_adaptations of config.json names {number + 1} or "
                "more; download both again"
            )
        (matrix,) = self._source.read_part(name, 0, number, number + 1)
        check_finite(matrix, self._source, name)
        return np.asarray(matrix)
