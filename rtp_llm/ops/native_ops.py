"""The CPU backend: our C++ kernels behind the vocabulary, as a stream of commands.

An op appends one command to a program and returns; `to_numpy` runs all that was recorded in a single call without
Python's lock, on up to `num_threads` cores. A result that Python drops is memory for the commands recorded after it, so
a model needs a few activations' worth, whatever its depth.

A row's bits depend on its own sequence alone: every kernel sums in one order, whatever the batch, its order and the
number of threads. Weights are packed once; the activations not fused in C++ run through numpy on a flushed stream.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from rtp_llm.core import Batch, FloatArray, Int32Array, QuantizedWeight
from rtp_llm.errors import ConfigError
from rtp_llm.ops import Experts, Norm, PoolMode, Quantization, Relative, reach_of, relative_reach
from rtp_llm.ops.int8 import check_quantized, quantizes
from rtp_llm.ops.native_checks import (
    check_ids,
    checked_prefixes,
    checked_seen,
    int32,
    kept_addresses,
    wanted_address,
)
from rtp_llm.ops.native_experts import record_experts
from rtp_llm.ops.native_fallback import ExpertsThroughLinear, ThroughNumpy, stand_in
from rtp_llm.ops.native_library import (
    FEWER_PARTS,
    GroupedWeight,
    Int8Weight,
    Library,
    PackedWeight,
    Table,
    fuses_gates,
    load,
    usable,
)
from rtp_llm.ops.native_rows import RowOps
from rtp_llm.ops.native_stream import (
    ATTENTION,
    COPY_COLUMNS,
    EMBED,
    FUSED,
    GATED,
    GATES,
    LINEAR,
    LINEAR_GROUPED,
    LINEAR_INT8,
    NORM,
    POOL,
    ROTARY,
    Stream,
    Tensor,
    hosted,
)
from rtp_llm.ops.numpy_ops import ACTIVATION, NumpyOps
from rtp_llm.ops.self_check import failing_ops
from rtp_llm.ops.weight_only import BITS, PARTS, ROUNDED, to_bf16

logger = logging.getLogger(__name__)

LinearWeight: TypeAlias = PackedWeight | Int8Weight | GroupedWeight
_POOL_MODES = {"cls": 0, "mean": 1, "max": 2, "mean_sqrt_len_tokens": 3, "weightedmean": 4, "lasttoken": 5}


class NativeOps(RowOps):
    """The C++ kernels bound to one stream; `fork()` shares weights and helper threads. Not for two threads at once."""

    name = "native"

    def __init__(self, num_threads: int = 1, instruction_set: str = "auto") -> None:
        self._bind(num_threads, *checked_library(instruction_set))

    def _bind(
        self, num_threads: int, library: Library, broken: frozenset[str], quantization: Quantization = "none",
        parts: int = 3,
    ) -> "NativeOps":  # fmt: skip
        self.num_threads, self.quantization, self.parts = num_threads, quantization, PARTS.get(quantization, parts)
        self.instruction_set = library.instruction_set
        self._library, self._broken = library, broken
        self._stream = Stream(library)
        self._new, self._record, self._operand = self._stream.new, self._stream.record, self._stream.operand
        self._max_lookups = library.max_lookups()
        self._checked: Batch | None = None
        for op in broken:
            setattr(self, op, stand_in(self, op))
        return self

    def fork(self, quantization: Quantization = "none", parts: int = 3) -> "NativeOps":
        if quantization in PARTS and quantization not in FEWER_PARTS.get(self.instruction_set, ()):
            raise ConfigError(f"{quantization}: the {self.instruction_set} kernels have none")
        return object.__new__(NativeOps)._bind(self.num_threads, self._library, self._broken, quantization, parts)

    @property
    def stream(self) -> Stream:
        """What it records into."""
        return self._stream

    def matrix(self, weight: FloatArray | QuantizedWeight) -> LinearWeight:
        if isinstance(weight, QuantizedWeight):
            return Int8Weight.of_quantized(check_quantized(weight), self._library, self.parts)
        if self.quantization == "int8" and quantizes(weight):
            return Int8Weight(weight, self._library, self.parts)
        if self.quantization in BITS:
            return GroupedWeight(weight, BITS[self.quantization], self._library, self.parts)
        if self.quantization in ROUNDED:
            weight = to_bf16(weight)
        return PackedWeight(weight, self._library, PARTS.get(self.quantization, 3))

    def vector(self, values: FloatArray) -> Tensor:
        return hosted(values)

    def table(self, rows: FloatArray) -> Table:
        return Table(to_bf16(rows) if self.quantization in ROUNDED else rows, self._library)

    def upload(self, batch: Batch) -> Batch:
        self._stream.begin()
        batch = replace(
            batch,
            input_ids=int32(batch.input_ids),
            position_ids=int32(batch.position_ids),
            token_type_ids=int32(batch.token_type_ids),
            cu_seqlens=int32(batch.cu_seqlens),
            prompt_lens=int32(batch.prompt_lens),
        )
        self._check(batch, batch.num_tokens)
        return batch

    def to_numpy(self, x: Tensor) -> FloatArray:
        if x.host is not None:
            return x.host.copy()
        assert x.stream is self._stream, "a tensor of another stream"
        result = np.empty(x.shape, dtype=np.float32)
        self._stream.kept.append(result)
        self._record(COPY_COLUMNS(result.ctypes.data, 0, 0, x.reference, 1, result.size, 0))
        self.run()
        return result

    def run(self) -> None:
        """Everything recorded so far; `to_numpy` does it by itself."""
        self._stream.run(self.num_threads)

    def embed(
        self, lookups: Sequence[tuple[Table, Int32Array]], norm: Norm | None = None, scale: float = 1.0
    ) -> Tensor:
        size, num_tokens = lookups[0][0].shape[1], len(lookups[0][1])
        assert len(lookups) <= self._max_lookups, f"{len(lookups)} tables at once"
        tables, rows, bf16_tables = [0] * self._max_lookups, [0] * self._max_lookups, 0
        for i, (table, ids) in enumerate(lookups):
            assert table.shape[1] == size and len(ids) == num_tokens, (table.shape, len(ids))
            ids = int32(ids)
            check_ids(ids, table.shape[0])
            self._stream.kept += (table, ids)
            self._stream.bounds.append((ids, table.shape[0]))
            tables[i], rows[i] = table.address, ids.ctypes.data
            bf16_tables |= table.is_bf16 << i
        y = self._new(num_tokens, size)
        if num_tokens:
            counts = num_tokens, size, len(lookups), bf16_tables
            self._record(EMBED(
                y.reference, num_tokens * size, *counts, scale, *tables, *rows, *self._norm(norm, size)
            ))  # fmt: skip
        return y

    def linear(
        self,
        x: Tensor,
        weight: LinearWeight,
        bias: Tensor | None = None,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        if activation is not None and activation not in FUSED:
            product = self.to_numpy(self.linear(x, weight, bias))
            activated = ACTIVATION[activation](product).astype(np.float32)
            return hosted(activated if residual is None else activated + self.to_numpy(residual))
        return self._product(x, weight, bias, residual, weight.out_features, FUSED[activation])

    def _product(
        self, x: Tensor, weight: LinearWeight, bias: Tensor | None, residual: Tensor | None, size: int, activation: int
    ) -> Tensor:
        """What the kernels make of it, `size` columns; `activation` as they count it."""
        num_rows, n, k = x.shape[0], weight.out_features, weight.in_features
        assert x.shape == (num_rows, k), f"x is {x.shape}, the weight [{n}, {k}]"
        assert bias is None or bias.shape == (n,), f"bias is {bias.shape}, the weight [{n}, {k}]"
        assert residual is None or residual.shape == (num_rows, n), f"residual is {residual.shape}"
        y = self._new(num_rows, size)
        if num_rows:
            self._stream.kept.append(weight)
            result, others = (y.reference, num_rows * size), (self._operand(bias), self._operand(residual))
            sizes = num_rows, n, k, activation
            if isinstance(weight, Int8Weight):
                quantized = self._stream.quantized(x)
                self._record(LINEAR_INT8(*result, quantized.reference, weight.address, *others, *sizes))
            elif isinstance(weight, GroupedWeight):
                rows = weight.bits, self._operand(x)
                self._record(LINEAR_GROUPED(*result, *rows, weight.address, *others, *sizes, weight.parts))
            else:
                kind = weight.is_bf16, weight.parts
                self._record(LINEAR(*result, self._operand(x), weight.address, *others, *sizes, *kind))
            y.parts = weight.parts
        return y

    def norm(self, x: Tensor, norm: Norm, residual: Tensor | None = None) -> Tensor:
        num_rows, size = x.shape
        assert residual is None or residual.shape == x.shape, f"residual is {residual.shape}, x {x.shape}"
        y = self._new(num_rows, size)
        if num_rows:
            self._record(NORM(
                y.reference, num_rows * size, self._operand(x), self._operand(residual), num_rows, size,
                *self._norm(norm, size),
            ))  # fmt: skip
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
        rows: Int32Array | None = None,
        kept: Sequence[Tensor] = (),
        softcap: float | None = None,
        distance_bias: Tensor | None = None,
        relative: Relative | None = None,
    ) -> Tensor:
        num_tokens, size = qkv.shape[0], num_heads * head_dim
        assert qkv.shape[1] == size + 2 * num_kv_heads * head_dim, f"qkv is {qkv.shape}"
        assert num_heads % num_kv_heads == 0 and scale > 0 and (window is None or window > 0)
        assert softcap is None or softcap > 0, f"softcap is {softcap}"
        cu_seqlens, _, prefix_of, seen_lens = self._check(batch, num_tokens)
        assert not prefix_of or (causal and relative is None), "a prefix does not see what follows, nor distances"
        reach = 0 if distance_bias is None else reach_of(distance_bias.shape, num_heads)
        relative = relative or Relative(None, None)
        wanted, num_wanted = (0, 0)
        if rows is not None:
            wanted, num_wanted = wanted_address(self._stream.kept, rows, self._offsets[0]), len(rows)
        num_rows = num_tokens if rows is None else num_wanted
        y = self._new(num_rows, size)
        if num_rows:
            self._record(ATTENTION(
                y.reference, num_rows * size, self._operand(qkv), cu_seqlens, prefix_of, seen_lens, wanted, num_wanted,
                *kept_addresses(self._stream.kept, batch, kept, 2 * num_kv_heads * head_dim), batch.num_seqs,
                batch.max_seqlen, num_heads, num_kv_heads, head_dim, causal, window or 0, scale, softcap or 0.0,
                self._operand(distance_bias), reach, self._operand(relative.keys), self._operand(relative.queries),
                relative_reach(relative, size), qkv.parts,
            ))  # fmt: skip
        return y

    def rotary(
        self,
        qkv: Tensor,
        cos_sin: Tensor,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> Tensor:
        num_tokens, size = qkv.shape
        assert size == (num_heads + 2 * num_kv_heads) * head_dim and head_dim % 2 == 0, f"qkv is {qkv.shape}"
        assert cos_sin.shape == (num_tokens, head_dim), f"cos_sin is {cos_sin.shape}"
        y = qkv if qkv.host is None else self.concat([qkv])
        if num_tokens:
            self._record(ROTARY(
                self._operand(y), 0, self._operand(cos_sin), num_tokens, num_heads, num_kv_heads, head_dim,
                *self._norm(q_norm, head_dim), *self._norm(k_norm, head_dim),
            ))  # fmt: skip
        return y

    def gated(self, x: Tensor, activation: str) -> Tensor:
        if activation not in FUSED:
            return hosted(NumpyOps().gated(self.to_numpy(x), activation))
        num_rows, size = x.shape[0], x.shape[1] // 2
        assert x.shape[1] == 2 * size, f"x is {x.shape}"
        y = self._new(num_rows, size)
        if num_rows:
            self._record(GATED(
                y.reference, num_rows * size, self._operand(x), num_rows, size, FUSED[activation]
            ))  # fmt: skip
        return y

    def gated_linear(self, x: Tensor, weight: LinearWeight, bias: Tensor | None, activation: str) -> Tensor:
        if activation not in FUSED or not fuses_gates(weight, self.instruction_set):
            return self.gated(self.linear(x, weight, bias), activation)
        return self._product(x, weight, bias, None, weight.out_features // 2, FUSED[activation] + GATES)

    def experts(self, x: Tensor, experts: Experts, residual: Tensor | None = None) -> Tensor:
        if experts.activation not in FUSED:
            return ExpertsThroughLinear(self)(x, experts, residual)
        return record_experts(self._stream, x, experts, residual)

    def short_conv(self, x: Tensor, weight: Tensor, batch: Batch, *, causal: bool, masked: bool = False) -> Tensor:
        """Through numpy on a flushed stream: of a layer's time a few hundredths, beside its products."""
        return ThroughNumpy(self.to_numpy, "short_conv")(x, weight, batch, causal=causal, masked=masked)

    def pool(self, x: Tensor, batch: Batch, mode: PoolMode, *, skip_prompt: bool = False) -> Tensor:
        num_tokens, size = x.shape
        cu_seqlens, prompt_lens, *_ = self._check(batch, num_tokens)
        y = self._new(batch.num_seqs, size)
        self._record(POOL(
            y.reference, batch.num_seqs * size, self._operand(x), cu_seqlens, prompt_lens if skip_prompt else 0,
            batch.num_seqs, size, _POOL_MODES[mode],
        ))  # fmt: skip
        return y

    def _norm(self, norm: Norm | None, size: int) -> tuple[int, int, float, bool]:
        if norm is None:
            return 0, 0, 0.0, False
        assert norm.weight.shape == (size,) and (norm.bias is None or norm.bias.shape == (size,))
        return self._operand(norm.weight), self._operand(norm.bias), norm.eps, norm.kind == "layer"

    def _check(self, batch: Batch, num_tokens: int) -> list[int]:
        """Addresses of cu_seqlens, prompt_lens, prefix_of and seen_lens, which are kept; they fit the rows."""
        if batch is not self._checked:
            cu_seqlens, prompt_lens = int32(batch.cu_seqlens), int32(batch.prompt_lens)
            lengths = cu_seqlens[1:] - cu_seqlens[:-1]
            assert cu_seqlens[0] == 0 and lengths.min() >= 0 and lengths.max() <= batch.max_seqlen
            assert len(prompt_lens) == batch.num_seqs and prompt_lens.min() >= 0
            others = checked_prefixes(batch), checked_seen(batch, lengths)
            self._checked, self._offsets = batch, (cu_seqlens, prompt_lens, *others)
            self._addresses = [0 if array is None else array.ctypes.data for array in self._offsets]
        assert self._offsets[0][-1] == num_tokens, f"a batch of {self._offsets[0][-1]} tokens for {num_tokens} rows"
        self._stream.kept.append(self._offsets)
        return self._addresses


@functools.cache
def checked_library(instruction_set: str) -> tuple[Library, frozenset[str]]:
    """The library to use and the ops of it that numpy must do; each kernel is compared with NumpyOps once a process.

    `auto`: the fastest instruction set without a mismatch. ConfigError when nothing was built, or when even the last
    resort multiplies wrongly.
    """
    names = (usable() or ("generic",)) if instruction_set == "auto" else (instruction_set,)
    broken: dict[str, frozenset[str]] = {}
    for name in names:
        ops = object.__new__(NativeOps)._bind(1, load(name), frozenset())
        forks = [ops.fork(kind) for kind in ("int8", *BITS)]
        if name in FEWER_PARTS:
            forks += [ops.fork(kind, parts=1) for kind in ("bf16_products", *BITS)]
        broken[name] = failing_ops(ops, *forks)
        if not broken[name]:
            break
    if any(broken.values()):
        found = "; ".join(f"{name}: {', '.join(sorted(ops))}" for name, ops in broken.items() if ops)
        logger.warning("kernels that differ from NumpyOps on this machine (%s); running on %s", found, name)
    if "linear" in broken[name]:
        raise ConfigError(f"the native kernels for {name} give wrong products on this machine; use --backend numpy")
    return load(name), broken[name]
