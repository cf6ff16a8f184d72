"""Plain numpy: the definition of right, and the backend of a machine without a compiler."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rtp_llm.core import Batch, FloatArray, Int32Array, QuantizedWeight
from rtp_llm.ops import Experts, Norm, PoolMode, Quantization, Relative, reach_of, relative_reach
from rtp_llm.ops.experts import mix
from rtp_llm.ops.int8 import check_quantized, fit_pairs, multiply, quantize_weight, quantizes
from rtp_llm.ops.weight_only import BITS, ROUNDED, Bf16Weight, quantize_groups, to_bf16

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def erf(x: FloatArray) -> NDArray[np.float64]:
    """Error function by Abramowitz & Stegun 7.1.5 (|x| <= 2.5) and 7.1.14 (beyond), in float64; error under 1e-9."""
    x64 = x.astype(np.float64)
    small = np.clip(x64, -2.5, 2.5)
    term, total = small.copy(), small.copy()
    for n in range(1, 40):
        term *= -small * small / n
        total += term / (2 * n + 1)
    large = np.maximum(np.abs(x64), 2.5)
    fraction = large.copy()
    for n in range(40, 0, -1):
        fraction = large + (n / 2) / fraction
    tail = np.sign(x64) * (1 - np.exp(-large * large) / (fraction * math.sqrt(math.pi)))
    return np.where(np.abs(x64) <= 2.5, total * 2 / math.sqrt(math.pi), tail)


def _softplus(x: FloatArray) -> FloatArray:
    return np.asarray(np.logaddexp(x, 0))


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.exp(-np.logaddexp(0, -x))


def _elu(x: FloatArray) -> FloatArray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


ACTIVATION: dict[str, Callable[[FloatArray], NDArray[np.floating]]] = {
    "gelu": lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "leaky_relu": lambda x: np.where(x > 0, x, x * 0.01),
    "elu": _elu,
    "selu": lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(np.minimum(x, 0))),
    "celu": _elu,
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "logsigmoid": lambda x: -np.logaddexp(0, -x),
    "tanhshrink": lambda x: x - np.tanh(x),
}


class NumpyOps:
    """Every op in a few lines of numpy; tensors are fp32 arrays."""

    name = "numpy"
    instruction_set = "numpy"
    num_threads = 1

    def __init__(self, quantization: Quantization = "none", parts: int = 3, fits_pairs: bool = False) -> None:
        """`fits_pairs`: weights are quantised to 8 bits as for kernels that add products of neighbours in 16."""
        self.quantization, self.parts, self.fits_pairs = quantization, parts, fits_pairs

    def fork(self, quantization: Quantization = "none", parts: int = 3) -> "NumpyOps":
        return NumpyOps(quantization, parts, self.fits_pairs)

    def matrix(self, weight: FloatArray | QuantizedWeight) -> FloatArray | QuantizedWeight | Bf16Weight:
        if isinstance(weight, QuantizedWeight):
            weight = check_quantized(weight)
            return fit_pairs(weight) if self.fits_pairs else weight
        if self.quantization == "int8" and quantizes(weight):
            return quantize_weight(weight, self.fits_pairs)
        if self.quantization in BITS:
            widened = quantize_groups(weight, BITS[self.quantization]).dequantized()
            return Bf16Weight(to_bf16(widened)) if self.parts == 1 else widened
        if self.quantization == "bf16":
            return to_bf16(weight)
        if self.quantization == "bf16_products":
            return Bf16Weight(to_bf16(weight))
        return np.ascontiguousarray(weight, dtype=np.float32)

    def vector(self, values: FloatArray) -> FloatArray:
        return np.ascontiguousarray(values, dtype=np.float32)

    def table(self, rows: FloatArray) -> FloatArray:
        if self.quantization in ROUNDED:
            return to_bf16(rows)
        return np.ascontiguousarray(rows, dtype=np.float32)

    def upload(self, batch: Batch) -> Batch:
        return batch

    def to_numpy(self, x: FloatArray) -> FloatArray:
        return x

    def embed(
        self, lookups: Sequence[tuple[FloatArray, Int32Array]], norm: Norm | None = None, scale: float = 1.0
    ) -> FloatArray:
        (table, ids), *others = lookups
        x: FloatArray = table[ids]
        for table, ids in others:
            x += table[ids]
        x *= np.float32(scale)
        return x if norm is None else self.norm(x, norm)

    def linear(
        self,
        x: FloatArray,
        weight: FloatArray | QuantizedWeight | Bf16Weight,
        bias: FloatArray | None = None,
        activation: str | None = None,
        residual: FloatArray | None = None,
    ) -> FloatArray:
        if isinstance(weight, QuantizedWeight):
            y = multiply(x, weight)
        elif isinstance(weight, Bf16Weight):
            y = _multiply(to_bf16(x), weight.values)
        else:
            y = _multiply(x, weight)
        if bias is not None:
            y += bias
        if activation is not None:
            y = ACTIVATION[activation](y).astype(np.float32)
        return y if residual is None else y + residual

    def norm(self, x: FloatArray, norm: Norm, residual: FloatArray | None = None) -> FloatArray:
        x64 = x.astype(np.float64)
        if norm.kind == "layer":
            x64 -= x64.mean(axis=-1, keepdims=True)
        x64 /= np.sqrt(np.mean(x64 * x64, axis=-1, keepdims=True) + norm.eps)
        y = x64 * norm.weight
        y = (y if norm.bias is None else y + norm.bias).astype(np.float32)
        return y if residual is None else y + residual

    def attention(
        self,
        qkv: FloatArray,
        batch: Batch,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        rows: Int32Array | None = None,
        kept: Sequence[FloatArray] = (),
        softcap: float | None = None,
        distance_bias: FloatArray | None = None,
        relative: Relative | None = None,
    ) -> FloatArray:
        assert relative is None or batch.prefix_of is None, "a prefix does not see what follows, nor distances"
        heads = qkv.reshape(len(qkv), -1, head_dim).transpose(1, 0, 2)
        q = heads[:num_heads]
        first = 0 if rows is None else batch.num_seqs - len(rows)
        out = []
        for i in range(first, batch.num_seqs):
            start, end = batch.cu_seqlens[i : i + 2]
            before = _prefix(heads[num_heads:], batch, i, kept)
            last = end if batch.seen_lens is None else start + batch.seen_lens[i]
            seen = np.concatenate([before, heads[num_heads:, start:last]], axis=1)
            keys, values = np.split(seen, 2)
            for row in range(start, end) if rows is None else rows[i - first, None]:
                position = before.shape[1] + row - start
                low, high = visible_keys(position, seen.shape[1], causal, window)
                # NOTE: one row and the keys it sees at a time: others would change the order of BLAS's sums.
                query, distances = q[:, row].reshape(num_kv_heads, -1, head_dim), np.arange(low, high) - position
                bias = None if distance_bias is None else _bias(distance_bias, distances)
                added = None if relative is None else _relative(relative, q[:, row], keys[:, low:high], distances)
                out.append(_attend(query, keys[:, low:high], values[:, low:high], scale, softcap, bias, added))
        return np.stack(out) if out else np.zeros((0, num_heads * head_dim), np.float32)

    def rotary(
        self,
        qkv: FloatArray,
        cos_sin: FloatArray,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> FloatArray:
        heads = qkv.reshape(len(qkv), -1, head_dim)
        q, k, v = np.split(heads, [num_heads, num_heads + num_kv_heads], axis=1)
        q = q if q_norm is None else self.norm(q, q_norm)
        k = k if k_norm is None else self.norm(k, k_norm)
        cos, sin = np.split(cos_sin[:, None], 2, axis=-1)
        return np.concatenate([_rotate(q, cos, sin), _rotate(k, cos, sin), v], axis=1).reshape(qkv.shape)

    def gated(self, x: FloatArray, activation: str) -> FloatArray:
        gate, up = np.split(x, 2, axis=-1)
        return ACTIVATION[activation](gate).astype(np.float32) * up

    def activate(self, x: FloatArray, activation: str) -> FloatArray:
        return ACTIVATION[activation](x).astype(np.float32)

    def gated_linear(
        self, x: FloatArray, weight: FloatArray | QuantizedWeight | Bf16Weight, bias: FloatArray | None, activation: str
    ) -> FloatArray:
        return self.gated(self.linear(x, weight, bias), activation)

    def experts(self, x: FloatArray, experts: Experts, residual: FloatArray | None = None) -> FloatArray:
        return mix(x, _multiply(x, experts.router), experts, self.linear, residual)

    def short_conv(
        self, x: FloatArray, weight: FloatArray, batch: Batch, *, causal: bool, masked: bool = False
    ) -> FloatArray:
        assert batch.prefix_of is None, "a convolution does not see the tokens of a prefix"
        before, after, values = np.split(x, 3, axis=-1)
        inputs, y = before * values, np.zeros_like(values)
        lengths = batch.seen_lens if masked and batch.seen_lens is not None else np.diff(batch.cu_seqlens)
        first = 1 - len(weight) if causal else -(len(weight) // 2)
        for start, length in zip(batch.cu_seqlens.tolist(), lengths.tolist(), strict=False):
            for shift, taps in enumerate(weight, first):
                low, high = start + max(0, -shift), start + length - max(0, shift)
                if low < high:
                    y[low:high] += taps * inputs[low + shift : high + shift]
        return after * y

    def pool(self, x: FloatArray, batch: Batch, mode: PoolMode, *, skip_prompt: bool = False) -> FloatArray:
        rows = []
        for i, (start, end) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)):
            skipped = int(batch.prompt_lens[i]) if skip_prompt else 0
            rows.append(_pool_one(x[start:end].astype(np.float64), mode, skipped))
        return np.stack(rows).astype(np.float32)

    def rows(self, x: FloatArray, index: Int32Array) -> FloatArray:
        return x[index]

    def only(self, x: FloatArray, groups: Int32Array, number: int, blocks: int = 1) -> FloatArray:
        own = groups[:, None] == np.arange(number, number + blocks)
        return np.where(np.repeat(own, x.shape[1] // blocks, axis=1), x, np.float32(0))

    def concat(self, tensors: Sequence[FloatArray]) -> FloatArray:
        return np.concatenate(tensors, axis=-1)

    def l2_normalize(self, x: FloatArray) -> FloatArray:
        return l2_normalize(x)


def _multiply(x: FloatArray, weight: FloatArray) -> FloatArray:
    """x @ weight.T, one product per row, since BLAS sums in another order for another number of rows."""
    return np.stack([weight @ row for row in x]) if len(x) else np.zeros((0, len(weight)), np.float32)


def l2_normalize(x: FloatArray) -> FloatArray:
    """Rows divided by max(their L2 norm, 1e-12); the norm in fp64, the result in fp32."""
    length = np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=-1, keepdims=True))
    return (x / np.maximum(length, 1e-12)).astype(np.float32)


def _rotate(x: FloatArray, cos: FloatArray, sin: FloatArray) -> FloatArray:
    """[T, heads, D] turned by angles [T, 1, D / 2]."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _prefix(heads: FloatArray, batch: Batch, seq: int, kept: Sequence[FloatArray]) -> FloatArray:
    """Key and value heads [2 * kv_heads, tokens, D] of the tokens that stand before sequence `seq`."""
    prefix = -1 if batch.prefix_of is None else int(batch.prefix_of[seq])
    if prefix < -1:
        tensor = kept[-2 - prefix]
        return tensor.reshape(len(tensor), len(heads), -1).transpose(1, 0, 2)
    if prefix == -1:
        return heads[:, :0]
    return heads[:, batch.cu_seqlens[prefix] : batch.cu_seqlens[prefix + 1]]


def visible_keys(position: int, seqlen: int, causal: bool, window: int | None) -> tuple[int, int]:
    """The keys that the query at `position` sees, of `seqlen` that are there: from the first to before the second."""
    low = 0 if window is None else max(0, position - window + 1)
    high = position + 1 if causal else seqlen if window is None else position + window
    return min(low, seqlen), min(high, seqlen)


def _bias(table: FloatArray, distances: NDArray[np.intp]) -> FloatArray:
    """Of a `distance_bias`, [num_heads, S] for the keys at these distances from the query."""
    end = reach_of(table.shape, len(table)) - 1
    return table[:, np.clip(distances, -end, end) + end]


def _relative(
    relative: Relative, query: FloatArray, keys: FloatArray, distances: NDArray[np.intp]
) -> NDArray[np.float64]:
    """What `relative` adds to the products of a query [heads, D] with keys [kv_heads, S, D] -> [heads, S]."""
    heads, size = query.shape
    end = relative_reach(relative, heads * size) - 1
    added = np.zeros((heads, len(distances)))
    if relative.keys is not None:
        seen = relative.keys[:, np.clip(distances, -end, end) + end].reshape(heads, size, -1)
        added += np.einsum("hd,hds->hs", query, seen)
    if relative.queries is not None:
        seeing = relative.queries[:, np.clip(-distances, -end, end) + end].reshape(heads, size, -1)
        added += np.einsum("hsd,hds->hs", keys.repeat(heads // len(keys), axis=0), seeing)
    return added


def _attend(
    query: FloatArray,
    keys: FloatArray,
    values: FloatArray,
    scale: float,
    softcap: float | None,
    bias: FloatArray | None,
    added: NDArray[np.float64] | None,
) -> FloatArray:
    """One row: [kv_heads, group, D], keys and values [kv_heads, S, D] -> [kv_heads * group * D]; 0 without keys.

    bias, added  [heads, S], for the scores, and for the products before they are scaled
    """
    if not keys.shape[1]:
        return np.zeros(query.size, np.float32)
    products = (query @ keys.transpose(0, 2, 1)).astype(np.float64)
    scores = (products if added is None else products + added.reshape(products.shape)) * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores += bias.reshape(scores.shape)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights.astype(np.float32) @ values).reshape(-1)


def _pool_one(x: NDArray[np.float64], mode: PoolMode, skipped: int) -> NDArray[np.float64]:
    """One sequence [S, H] -> [H]; the first `skipped` rows are masked out."""
    if mode == "cls":
        return x[skipped] if skipped < len(x) else x[0]
    if mode == "lasttoken":
        return x[-1] if skipped < len(x) else np.zeros(x.shape[1])
    kept = x[skipped:]
    if len(kept) == 0:
        return np.zeros(x.shape[1])
    if mode == "max":
        return kept.max(axis=0)
    if mode == "weightedmean":
        weights = np.arange(skipped + 1, len(x) + 1, dtype=np.float64)
        return weights @ kept / weights.sum()
    return kept.sum(axis=0) / (len(kept) if mode == "mean" else math.sqrt(len(kept)))
