"""Plain torch on any of its devices: eager, packed, without padding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rtp_llm.core import Batch, FloatArray, Int32Array, QuantizedWeight
from rtp_llm.errors import ConfigError
from rtp_llm.ops import Experts, Norm, PoolMode, Quantization, Relative, reach_of, relative_reach
from rtp_llm.ops.joined_arrays import offsets_of, write
from rtp_llm.ops.torch_conv import convolve
from rtp_llm.ops.torch_experts import mix

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ACTIVATION: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu, "silu": F.silu,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "leaky_relu": F.leaky_relu, "elu": F.elu, "selu": F.selu,
    "celu": F.celu, "softplus": F.softplus, "softsign": F.softsign, "mish": F.mish, "relu6": F.relu6,
    "hardtanh": F.hardtanh, "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
}  # fmt: skip
_OF_A_CPU = "is for a CPU without torch: say --device cpu and leave out --backend torch"
# The fields of a batch that are arrays.
_UPLOADED = (
    "input_ids", "position_ids", "token_type_ids", "cu_seqlens", "prompt_lens", "seen_lens", "wanted", "adapters",
    "wanted_adapters",
)  # fmt: skip
_PART = 4 << 20  # numbers of a weight that are moved at once


class TorchOps:
    """Tensors are torch tensors of `dtype` on `device`; norms' statistics, pooling and l2_normalize are fp32."""

    name = "torch"
    num_threads = 1
    quantization: Quantization = "none"
    parts = 3
    # Whether no op needs `Batch.host`, so that a CUDA graph of them serves any batch of as many tokens and sequences,
    # but for what needs numbers on the host: attention with `relative`, and experts.
    graph_safe = False
    reads_host: frozenset[str] = frozenset({"relative", "experts"})

    def __init__(self, device: str = "cpu", dtype: str = "fp32") -> None:
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        self.instruction_set = str(self.device)

    def fork(self, quantization: Quantization = "none", parts: int = 3) -> "TorchOps":
        if quantization != "none":
            raise ConfigError(f"quantization {quantization} {_OF_A_CPU}", param="quantization")
        return self

    def matrix(self, weight: FloatArray | QuantizedWeight) -> torch.Tensor:
        if isinstance(weight, QuantizedWeight):
            raise ConfigError(f"the checkpoint's weights are in 8 bits, which {_OF_A_CPU}", param="backend")
        return self._put(weight)

    def vector(self, values: FloatArray) -> torch.Tensor:
        """A matrix whose columns stand together in memory, as those of a transposed one, has them so here too."""
        by_columns = values.ndim == 2 and values.flags.f_contiguous and not values.flags.c_contiguous
        return self._put(values.T).t() if by_columns else self._put(values)

    def table(self, rows: FloatArray) -> torch.Tensor:
        return self._put(rows)

    def upload(self, batch: Batch) -> Any:
        """The same fields as torch tensors, in one copy; `max_seqlen` stays a number, `prefix_of` on the host."""
        arrays = self.arrays(batch)
        offsets, size = offsets_of(arrays.values())
        joined = np.empty(size, np.int32)
        write(joined, arrays.values(), offsets)
        return self.place(batch, arrays, offsets, torch.from_numpy(joined).to(self.device))

    def arrays(self, batch: Batch, *, fixed: bool = False) -> dict[str, Int32Array]:
        """What the kernels read of a batch on the host, by name.

        fixed  for a CUDA graph: lengths that the numbers of tokens and of sequences alone decide
        """
        named = {name: getattr(batch, name) for name in _UPLOADED}
        return {name: array for name, array in named.items() if array is not None}

    def place(
        self, batch: Batch, arrays: Mapping[str, Int32Array], offsets: Sequence[int], joined: torch.Tensor
    ) -> Any:
        """The batch with those `arrays` where they stand in `joined`, int32 on the device."""
        views: dict[str, Any] = {
            name: joined[offset : offset + len(array)]
            for (name, array), offset in zip(arrays.items(), offsets, strict=True)
        }
        return replace(batch, **views, host=batch)

    def plain(self, x: Any) -> torch.Tensor:
        """What an op has returned, as a tensor of torch's."""
        return x

    def to_numpy(self, x: torch.Tensor) -> FloatArray:
        return np.array(x.float().cpu().numpy())

    def embed(
        self, lookups: Sequence[tuple[torch.Tensor, Any]], norm: Norm | None = None, scale: float = 1.0
    ) -> torch.Tensor:
        (table, ids), *others = lookups
        x = F.embedding(ids, table)
        for table, ids in others:
            x = x + F.embedding(ids, table)
        x = x if scale == 1.0 else x * scale
        return x if norm is None else self.norm(x, norm)

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # Pooled rows arrive in fp32 whatever the dtype of the layers, and stay so: heads compute in fp32.
        if x.dtype != weight.dtype:
            weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        y = F.linear(x, weight, bias)
        if activation is not None:
            y = ACTIVATION[activation](y)
        return y if residual is None else y + residual

    def plus(self, x: torch.Tensor, residual: Any) -> Any:
        """x + residual, as `linear` and `norm` add it."""
        return x + residual

    def norm(self, x: torch.Tensor, norm: Norm, residual: torch.Tensor | None = None) -> torch.Tensor:
        if norm.kind == "layer":
            bias = None if norm.bias is None else norm.bias.to(x.dtype)
            y = F.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), bias, norm.eps)
        else:
            x32 = x.float()
            x32 = x32 * torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + norm.eps)
            y = (x32 * norm.weight.float()).to(x.dtype)
        return y if residual is None else y + residual

    def attention(
        self,
        qkv: torch.Tensor,
        batch: Any,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        rows: Any | None = None,
        kept: Sequence[torch.Tensor] = (),
        softcap: float | None = None,
        distance_bias: torch.Tensor | None = None,
        relative: Relative | None = None,
    ) -> torch.Tensor:
        assert relative is None or batch.prefix_of is None, "a prefix does not see what follows, nor distances"
        heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim).transpose(0, 1)
        q, kv = heads[:num_heads], heads[num_heads:]
        before = [x.view(len(x), 2 * num_kv_heads, head_dim).transpose(0, 1) for x in kept]
        # Lengths are read on the host: asking the device for them would wait for all that it has to do.
        host = batch.host or batch
        rows = None if rows is None else host.wanted
        spans = list(pairwise(host.cu_seqlens.tolist()))
        seen = [end - start for start, end in spans] if host.seen_lens is None else host.seen_lens.tolist()
        prefix_of = [-1] * len(spans) if batch.prefix_of is None else batch.prefix_of.tolist()
        first = 0 if rows is None else len(spans) - len(rows)
        wanted = spans if rows is None else [(-1, -1)] * first + [(row, row + 1) for row in rows.tolist()]
        outputs = []
        for (start, _), length, prefix, (low, high) in list(zip(spans, seen, prefix_of, wanted, strict=True))[first:]:
            own = kv[:, start : start + length]
            if prefix != -1:
                own = torch.cat([kv[:, slice(*spans[prefix])] if prefix >= 0 else before[-2 - prefix], own], dim=1)
            keys, values = own.chunk(2)
            place = low - start + keys.shape[1] - length
            outputs += self._attend(
                q[:, low:high], keys, values, place, scale, causal, window, softcap, distance_bias, relative
            )  # fmt: skip
        return torch.cat(outputs, dim=1).transpose(0, 1).reshape(-1, num_heads * head_dim)

    def rotary(
        self,
        qkv: torch.Tensor,
        cos_sin: torch.Tensor,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> torch.Tensor:
        heads = qkv.view(len(qkv), -1, head_dim)
        q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
        q = q if q_norm is None else self.norm(q, q_norm)
        k = k if k_norm is None else self.norm(k, k_norm)
        cos, sin = cos_sin[:, None].chunk(2, dim=-1)
        return torch.cat([_rotate(q, cos, sin), _rotate(k, cos, sin), v], dim=1).view(qkv.shape)

    def gated(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return ACTIVATION[activation](gate) * up

    def activate(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        return ACTIVATION[activation](x)

    def gated_linear(self, x: Any, weight: Any, bias: torch.Tensor | None, activation: str) -> Any:
        return self.gated(self.linear(x, weight, bias), activation)

    def experts(self, x: torch.Tensor, experts: Experts, residual: torch.Tensor | None = None) -> Any:
        """Waits for the device once: how many rows an expert has is a shape on the host."""
        y = mix(x, experts, self.linear)
        return y if residual is None else self.plus(y, residual)

    def short_conv(
        self, x: torch.Tensor, weight: torch.Tensor, batch: Any, *, causal: bool, masked: bool = False
    ) -> torch.Tensor:
        return convolve(x, weight, batch, causal=causal, masked=masked)

    def pool(self, x: torch.Tensor, batch: Any, mode: PoolMode, *, skip_prompt: bool = False) -> torch.Tensor:
        starts, ends = batch.cu_seqlens[:-1].long(), batch.cu_seqlens[1:].long()
        skipped = batch.prompt_lens.long().minimum(ends - starts) if skip_prompt else torch.zeros_like(starts)
        if mode == "lasttoken":
            last = x[ends - 1].float()
            return last.masked_fill((skipped == ends - starts)[:, None], 0.0) if skip_prompt else last
        if mode == "cls":
            return x[starts + torch.where(starts + skipped < ends, skipped, 0)].float()
        # No shape depends on a number that only the device knows: that would wait for it. index_add adds one row after
        # another, whose rounding grows with the length: in float64, which Apple's GPUs do not have.
        row = torch.arange(len(x), device=x.device)
        segment = torch.searchsorted(ends, row, right=True)
        position = row - starts[segment]
        kept = position >= skipped[segment]
        if mode == "max":
            out, x32 = torch.zeros(len(starts), x.shape[1], device=x.device), x.float()
            index, x32 = segment[:, None].expand_as(x32), x32.masked_fill(~kept[:, None], -torch.inf)
            pooled = out.scatter_reduce(0, index, x32, "amax", include_self=False)
            return pooled.masked_fill((skipped == ends - starts)[:, None], 0.0)
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        weights = (position + 1).to(wide) if mode == "weightedmean" else torch.ones_like(position, dtype=wide)
        weights, x = weights * kept, x.to(wide).masked_fill(~kept[:, None], 0.0)
        total = torch.zeros(len(starts), dtype=wide, device=x.device).index_add(0, segment, weights).clamp(min=1)
        summed = torch.zeros(len(starts), x.shape[1], dtype=wide, device=x.device)
        summed = summed.index_add(0, segment, x * weights[:, None])
        return (summed / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)[:, None]).float()

    def rows(self, x: torch.Tensor, index: Any) -> torch.Tensor:
        return x[index]

    def only(self, x: torch.Tensor, groups: Any, number: int, blocks: int = 1) -> torch.Tensor:
        others = groups[:, None] != torch.arange(number, number + blocks, device=x.device)
        return x.view(len(x), blocks, -1).masked_fill(others[:, :, None], 0.0).view(x.shape)

    def concat(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(tensors), dim=-1)

    def l2_normalize(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x.float(), dim=-1)

    def _put(self, array: FloatArray) -> torch.Tensor:
        """A weight on the device in its dtype, part by part: beside it, one part is held, on the host and there."""
        target = torch.empty(array.shape, dtype=self.dtype, device=self.device)
        flat_target, flat = target.view(-1), array.reshape(-1)
        part = torch.empty(min(_PART, flat.size), dtype=torch.float32, pin_memory=self.device.type == "cuda")
        for start in range(0, flat.size, _PART):
            count = min(_PART, flat.size - start)
            np.copyto(part[:count].numpy(), flat[start : start + count])
            flat_target[start : start + count] = part[:count].to(self.device)
        return target

    def _attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        place: int,
        scale: float,
        causal: bool,
        window: int | None,
        softcap: float | None,
        table: torch.Tensor | None,
        relative: Relative | None,
    ) -> list[torch.Tensor]:
        """Queries [num_heads, R, D], from position `place` on, of one sequence [num_kv_heads, S, D] -> like them, in
        parts.

        Scores, and a mask with a bias, are numbers for every head: of a long sequence, for some queries at a time.
        """
        (num_heads, num_rows, _), seqlen, parts = queries.shape, keys.shape[1], []
        if not seqlen:
            return [torch.zeros_like(queries)]
        has_scores = table is not None or relative is not None or softcap is not None
        step = max(1, _PART // (num_heads * seqlen)) if has_scores else num_rows
        for part, low in zip(torch.split(queries, step, dim=1), range(place, place + num_rows, step), strict=True):
            bias = self._added(table, relative, part, keys, low, scale)
            mask = self._mask(low, low + part.shape[1], seqlen, causal, window, bias)
            if softcap is not None:
                parts.append(_capped(part, keys, values, mask, scale, softcap))
                continue
            attended = F.scaled_dot_product_attention(
                part[None], keys[None], values[None], mask, scale=scale, enable_gqa=num_heads != len(keys)
            )
            parts.append(attended[0])
        return parts

    def _mask(
        self, low: int, high: int, seqlen: int, causal: bool, window: int | None, bias: torch.Tensor | None
    ) -> torch.Tensor | None:
        """`_visible`, or with a bias [num_heads, high - low, seqlen], -inf where the key is not seen."""
        visible = self._visible(low, high, seqlen, causal, window)
        if bias is None or visible is None:
            return visible if bias is None else bias
        return bias.masked_fill(~visible, -torch.inf)

    def _added(
        self,
        table: torch.Tensor | None,
        relative: Relative | None,
        queries: torch.Tensor,
        keys: torch.Tensor,
        low: int,
        scale: float,
    ) -> torch.Tensor | None:
        """What the scores of queries from position `low` on have beside the products; None: nothing."""
        bias = None if table is None else self._bias(table, low, queries.shape[1], keys)
        if relative is None:
            return bias
        said = self._relative(relative, queries, keys, low) * scale
        return said if bias is None else bias + said

    def _bias(self, table: torch.Tensor, low: int, num_queries: int, keys: torch.Tensor) -> torch.Tensor:
        """Of a `distance_bias`, for queries from position `low` on -> [num_heads, num_queries, seqlen]."""
        end = reach_of(table.shape, len(table)) - 1
        queries = torch.arange(low, low + num_queries, device=self.device)
        places = torch.arange(keys.shape[1], device=self.device)
        return table[:, (places[None, :] - queries[:, None]).clamp(-end, end) + end]

    def _relative(self, relative: Relative, queries: torch.Tensor, keys: torch.Tensor, low: int) -> torch.Tensor:
        """What `relative` adds to the products of queries [num_heads, R, D], from position `low` on, with keys
        [num_kv_heads, S, D] -> [num_heads, R, S].

        Of the products with all distances that occur, each row reads a run of its own: rows of one number less.
        """
        (num_heads, num_rows, size), num_keys = queries.shape, keys.shape[1]
        shape, width = (num_heads, num_rows, num_keys), num_rows + num_keys - 1
        end, run = relative_reach(relative, num_heads * size) - 1, torch.arange(width, device=self.device)
        total = queries.new_zeros(shape)
        if relative.keys is not None:
            columns = (run - low - num_rows + 1).clamp(-end, end) + end
            products = (queries @ relative.keys.view(num_heads, size, -1)[:, :, columns]).contiguous()
            total = total + products.as_strided(shape, (num_rows * width, width - 1, 1), num_rows - 1)
        if relative.queries is not None:
            columns = (run + low - num_keys + 1).clamp(-end, end) + end
            keys = keys.repeat_interleave(num_heads // len(keys), dim=0)
            products = (keys @ relative.queries.view(num_heads, size, -1)[:, :, columns]).contiguous()
            total = total + products.as_strided(shape, (num_keys * width, 1, width - 1), num_keys - 1)
        return total

    def _visible(self, low: int, high: int, seqlen: int, causal: bool, window: int | None) -> torch.Tensor | None:
        """[high - low, seqlen]: True where the query at position low + i may see key j; None when all is visible."""
        if not causal and window is None:
            return None
        queries, keys = torch.arange(low, high, device=self.device), torch.arange(seqlen, device=self.device)
        distance = queries[:, None] - keys[None, :]
        visible = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        return visible if window is None else visible & (distance.abs() < window)


def _capped(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """Attention with capped scores, which torch has not; the softmax in fp32, as transformers has it."""
    keys, values = (x.repeat_interleave(len(queries) // len(x), dim=0) for x in (keys, values))
    scores = torch.tanh(queries @ keys.transpose(1, 2) * scale / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.float().softmax(-1).to(values.dtype) @ values


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[T, heads, D] turned by angles [T, 1, D / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
