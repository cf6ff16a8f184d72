"""The CPU backend: our C++ kernels behind the vocabulary, as a stream of commands.

An op allocates its result in the stream's arena, appends one command and returns; `to_numpy` runs all that was
recorded in a single call without Python's lock, on up to `num_threads` cores. A result that Python drops is memory for
the commands recorded after it, so a model needs a few activations' worth, whatever its depth.

A row's bits depend on its own sequence alone: every kernel sums in one order, whatever the batch, its order and the
number of threads. Weights are packed once; the activations not fused in C++ run through numpy on a flushed stream.
"""

import ctypes
import logging
import mmap
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rtp_llm.core import Batch, FloatArray, Int32Array
from rtp_llm.errors import ConfigError, InvalidRequest
from rtp_llm.ops import Norm, PoolMode
from rtp_llm.ops.native_library import Library, load, usable
from rtp_llm.ops.numpy_ops import ACTIVATION, NumpyOps

logger = logging.getLogger(__name__)

_FUSED = {None: 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "silu": 4, "tanh": 5}
_POOL_MODES = {"cls": 0, "mean": 1, "max": 2, "mean_sqrt_len_tokens": 3, "weightedmean": 4, "lasttoken": 5}
_HUGE_PAGE = 2 << 20


class Stream:
    """Owns the C++ stream: commands, arena, and the host arrays that recorded commands will read."""

    __slots__ = ("handle", "kept", "library")

    def __init__(self, library: Library) -> None:
        self.library = library
        self.kept: list[Any] = []
        self.handle: int = library.stream_new()
        if not self.handle:
            raise MemoryError("no memory for a stream")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.stream_delete(self.handle)


class Tensor:
    """fp32, row-major: a block of a stream's arena, or a host array when `host` is set."""

    __slots__ = ("address", "host", "shape", "stream")

    def __init__(self, shape: tuple[int, ...], stream: Stream | None, host: FloatArray | None = None) -> None:
        self.shape, self.stream, self.host = shape, None, host
        if host is not None:
            self.address: int = host.ctypes.data
        elif stream is not None:
            num_bytes = 4 * int(np.prod(shape))
            self.address = stream.library.alloc(stream.handle, num_bytes)
            if not self.address:
                raise MemoryError(f"no memory for an activation of {num_bytes} bytes; lower max_context_batch_size")
            self.stream = stream

    def __del__(self) -> None:
        if self.stream is not None:
            self.stream.library.free(self.stream.handle, self.address)


class PackedWeight:
    """A linear layer's weight in panels of columns: [ceil(N / panel)][K][panel]."""

    __slots__ = ("address", "in_features", "memory", "out_features")

    def __init__(self, weight: FloatArray, library: Library) -> None:
        weight = np.ascontiguousarray(weight, dtype=np.float32)
        self.out_features, self.in_features = weight.shape
        self.memory = _aligned(library.packed_size(self.out_features, self.in_features))
        self.address: int = self.memory.ctypes.data
        library.pack_weight(weight.ctypes.data, self.out_features, self.in_features, self.address)


class NativeOps:
    """The C++ kernels bound to one stream; `fork()` shares weights and helper threads. Not for two threads at once."""

    name = "native"

    def __init__(self, num_threads: int = 1, instruction_set: str = "auto") -> None:
        self.num_threads = num_threads
        self._library, self._broken = _checked_library(instruction_set)
        self._open()

    @property
    def instruction_set(self) -> str:
        return self._library.instruction_set

    def _open(self) -> None:
        self._stream = Stream(self._library)
        self._checked: Batch | None = None
        for op in self._broken:
            setattr(self, op, _ThroughNumpy(self, op))

    def fork(self) -> "NativeOps":
        other = object.__new__(NativeOps)
        other.num_threads, other._library, other._broken = self.num_threads, self._library, self._broken
        other._open()
        return other

    def matrix(self, weight: FloatArray) -> PackedWeight:
        return PackedWeight(weight, self._library)

    def vector(self, values: FloatArray) -> Tensor:
        return _hosted(values)

    def table(self, rows: FloatArray) -> Tensor:
        return _hosted(rows)

    def upload(self, batch: Batch) -> Batch:
        if self._library.begin(self._stream.handle) == 0:
            self._stream.kept.clear()
        batch = replace(
            batch,
            input_ids=_int32(batch.input_ids),
            position_ids=_int32(batch.position_ids),
            token_type_ids=_int32(batch.token_type_ids),
            cu_seqlens=_int32(batch.cu_seqlens),
            prompt_lens=_int32(batch.prompt_lens),
        )
        self._check(batch, batch.num_tokens)
        return batch

    def to_numpy(self, x: Tensor) -> FloatArray:
        if x.host is not None:
            return x.host.copy()
        assert x.stream is self._stream, "a tensor of another stream"
        self._library.run(self._stream.handle, self.num_threads)
        self._stream.kept.clear()
        result = np.empty(x.shape, dtype=np.float32)
        ctypes.memmove(result.ctypes.data, x.address, result.nbytes)
        return result

    def embed(self, lookups: Sequence[tuple[Tensor, Int32Array]], norm: Norm | None = None) -> Tensor:
        size, num_tokens = lookups[0][0].shape[1], len(lookups[0][1])
        assert len(lookups) <= self._library.max_lookups(), f"{len(lookups)} tables at once"
        addresses = []
        for table, ids in lookups:
            assert table.shape[1] == size and len(ids) == num_tokens, (table.shape, len(ids))
            ids = _int32(ids)
            _check_ids(ids, table.shape[0])
            self._stream.kept += (table, ids)
            addresses.append((table.address, ids.ctypes.data))
        tables, rows = ((ctypes.c_void_p * len(lookups))(*column) for column in zip(*addresses, strict=True))
        y = self._new(num_tokens, size)
        if num_tokens:
            self._library.record_embed(
                self._stream.handle, y.address, num_tokens, size, len(lookups), tables, rows, *self._norm(norm, size)
            )
        return y

    def linear(
        self,
        x: Tensor,
        weight: PackedWeight,
        bias: Tensor | None = None,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        if activation not in _FUSED:
            y = ACTIVATION[activation](self.to_numpy(self.linear(x, weight, bias)))
            return _hosted(y.astype(np.float32) if residual is None else y.astype(np.float32) + self.to_numpy(residual))
        num_rows, n, k = x.shape[0], weight.out_features, weight.in_features
        assert x.shape == (num_rows, k), f"x is {x.shape}, the weight [{n}, {k}]"
        assert bias is None or bias.shape == (n,), f"bias is {bias.shape}, the weight [{n}, {k}]"
        assert residual is None or residual.shape == (num_rows, n), f"residual is {residual.shape}"
        y = self._new(num_rows, n)
        if num_rows:
            self._keep(x, weight, bias, residual)
            self._library.record_linear(
                self._stream.handle, y.address, x.address, weight.address, _address(bias), _address(residual),
                num_rows, n, k, _FUSED[activation],
            )  # fmt: skip
        return y

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        num_rows, size = x.shape
        y = self._new(num_rows, size)
        if num_rows:
            self._keep(x)
            self._library.record_norm(
                self._stream.handle, y.address, x.address, num_rows, size, *self._norm(norm, size)
            )
        return y

    def attention(
        self,
        qkv: Tensor,
        batch: Batch,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        causal: bool = False,
        window: int | None = None,
    ) -> Tensor:
        num_tokens = qkv.shape[0]
        assert qkv.shape[1] == (num_heads + 2 * num_kv_heads) * head_dim, f"qkv is {qkv.shape}"
        assert num_heads % num_kv_heads == 0 and scale > 0 and (window is None or window > 0)
        batch = self._check(batch, num_tokens)
        y = self._new(num_tokens, num_heads * head_dim)
        if num_tokens:
            self._keep(qkv, batch)
            self._library.record_attention(
                self._stream.handle, y.address, qkv.address, batch.cu_seqlens.ctypes.data, batch.num_seqs,
                batch.max_seqlen, num_heads, num_kv_heads, head_dim, scale, causal, window or 0,
            )  # fmt: skip
        return y

    def pool(self, x: Tensor, batch: Batch, mode: PoolMode, *, skip_prompt: bool = False) -> Tensor:
        num_tokens, size = x.shape
        batch = self._check(batch, num_tokens)
        y = self._new(batch.num_seqs, size)
        self._keep(x, batch)
        self._library.record_pool(
            self._stream.handle, y.address, x.address, batch.cu_seqlens.ctypes.data,
            batch.prompt_lens.ctypes.data if skip_prompt else None, batch.num_seqs, size, _POOL_MODES[mode],
        )  # fmt: skip
        return y

    def concat(self, tensors: Sequence[Tensor]) -> Tensor:
        num_rows = tensors[0].shape[0]
        assert all(x.shape[0] == num_rows for x in tensors), [x.shape for x in tensors]
        y = self._new(num_rows, sum(x.shape[1] for x in tensors))
        column = y.address
        for x in tensors:
            self._keep(x)
            self._library.record_copy_columns(self._stream.handle, column, x.address, num_rows, x.shape[1], y.shape[1])
            column += 4 * x.shape[1]
        return y

    def l2_normalize(self, x: Tensor) -> Tensor:
        y = self._new(*x.shape)
        if x.shape[0]:
            self._keep(x)
            self._library.record_normalize(self._stream.handle, y.address, x.address, *x.shape)
        return y

    def _new(self, *shape: int) -> Tensor:
        return Tensor(shape, self._stream)

    def _keep(self, *operands: Any) -> None:
        """Memory outside the arena stays until the run; a block of the arena lives on in stream order by itself."""
        self._stream.kept += [x for x in operands if x is not None and getattr(x, "stream", None) is None]

    def _norm(self, norm: Norm | None, size: int) -> tuple[int | None, int | None, float, bool]:
        if norm is None:
            return None, None, 0.0, False
        assert norm.weight.shape == (size,) and (norm.bias is None or norm.bias.shape == (size,))
        self._stream.kept.append(norm)
        return norm.weight.address, _address(norm.bias), norm.eps, norm.kind == "layer"

    def _check(self, batch: Batch, num_tokens: int) -> Batch:
        """The batch once its offsets are known to stay inside `num_tokens` rows."""
        if batch is not self._checked:
            batch = replace(batch, cu_seqlens=_int32(batch.cu_seqlens), prompt_lens=_int32(batch.prompt_lens))
            lengths = np.diff(batch.cu_seqlens)
            assert batch.cu_seqlens[0] == 0 and (lengths >= 0).all() and lengths.max() <= batch.max_seqlen
            assert len(batch.prompt_lens) == batch.num_seqs and (batch.prompt_lens >= 0).all()
            self._checked = batch
        assert batch.cu_seqlens[-1] == num_tokens, f"a batch of {batch.cu_seqlens[-1]} tokens for {num_tokens} rows"
        return batch


class _ThroughNumpy:
    """Stands for an op whose kernel failed the self-check: the stream is run, numpy computes."""

    def __init__(self, ops: NativeOps, op: str) -> None:
        self._fetch = ops.to_numpy
        self._op = getattr(NumpyOps(), op)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return _hosted(self._op(*map(self._to_host, args), **{k: self._to_host(v) for k, v in kwargs.items()}))

    def _to_host(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._fetch(value)
        if isinstance(value, Norm):
            return replace(value, weight=self._to_host(value.weight), bias=self._to_host(value.bias))
        if isinstance(value, (list, tuple)):
            return [self._to_host(item) for item in value]
        return value


def measure_peak(num_threads: int, seconds: float) -> float:
    """fp32 GFLOP/s of this machine's best instruction set, multiply-adds between registers, on so many cores."""
    library = load(usable()[0])
    results: list[float] = []
    threads = [threading.Thread(target=lambda: results.append(library.peak(seconds))) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(results)


def _int32(values: Int32Array) -> Int32Array:
    return np.ascontiguousarray(values, dtype=np.int32)


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.address


def _hosted(values: FloatArray) -> Tensor:
    host = np.ascontiguousarray(values, dtype=np.float32)
    return Tensor(host.shape, None, host)


def _check_ids(ids: Int32Array, num_rows: int) -> None:
    if len(ids) and not (0 <= ids.min() and ids.max() < num_rows):
        bad = ids[(ids < 0) | (ids >= num_rows)][0]
        raise InvalidRequest(f"id {bad} is outside the model's table of {num_rows} rows")


def _aligned(num_floats: int) -> FloatArray:
    """Page-aligned memory; whole huge pages where the system has them, for fewer TLB misses."""
    memory = mmap.mmap(-1, max(4 * num_floats, 4))
    return np.frombuffer(memory, dtype=np.float32)


def _checked_library(instruction_set: str) -> tuple[Library, frozenset[str]]:
    return load(usable()[0] if instruction_set == "auto" else instruction_set), frozenset()
