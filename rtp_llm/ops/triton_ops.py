"""TorchOps with the ops that are faster fused as Triton kernels: NVIDIA from sm_80 on, AMD.

GEMMs stay torch's (cuBLASLt with its bias epilogue). An op of which the start-up check (rtp_llm.ops.triton_check)
does not get torch's result is torch's too, and so is one whose kernel cannot be compiled, and a call whose shapes its
kernel does not take.
"""

import logging
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any, TypeVar, cast

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from rtp_llm.core import Batch, FloatArray, Int32Array, QuantizedWeight
from rtp_llm.errors import ConfigError, in_one_line
from rtp_llm.ops import (
    Experts,
    Norm,
    PoolMode,
    Quantization,
    Relative,
    tiles,
    triton_attention,
    triton_experts,
    triton_fp8,
    triton_gated,
    triton_norm,
    triton_pool,
    triton_rotary,
)
from rtp_llm.ops.torch_ops import ACTIVATION, TorchOps
from rtp_llm.ops.triton_fp8 import Matrix8, Rows8
from rtp_llm.ops.triton_launch import INTERPRETED, is_hip

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Ops that are kernels here; `relative` is attention with that.
FUSED = ("embed", "norm", "attention", "relative", "rotary", "gated", "experts", "pool", "l2_normalize", "rows8")
_MAX_HEAD_DIM = {"attention": 256, "relative": 128}


class Sum:
    """x + residual, not yet added: the norm that reads it first does it on its way."""

    __slots__ = ("_parts", "_value")

    def __init__(self, x: torch.Tensor, residual: torch.Tensor) -> None:
        self._parts: tuple[torch.Tensor, torch.Tensor] | None = (x, residual)
        self._value: torch.Tensor | None = None

    @property
    def parts(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What is still to be added."""
        return (self.value, None) if self._parts is None else self._parts

    @property
    def value(self) -> torch.Tensor:
        """The sum."""
        if self._value is None:
            assert self._parts is not None
            x, residual = self._parts
            self.added(x + residual)
        assert self._value is not None
        return self._value

    def added(self, value: torch.Tensor) -> None:
        """Somebody has added: the parts are not held any longer."""
        self._value, self._parts = value, None


def plain(x: Any) -> torch.Tensor:
    """A tensor, whatever an op has returned."""
    if isinstance(x, Rows8):
        return x.widened()
    return x.value if isinstance(x, Sum) else x


class TritonOps(TorchOps):
    """Layers as kernels, or as torch has them.

    replaced  those of FUSED that are left to torch
    gelu      "tanh" takes that form for every gelu of a layer
    rows8     what a weight in 8 bits reads is made in 8 bits by the op before it
    """

    name = "triton"
    graph_safe = True

    def __init__(
        self,
        device: str = "cuda",
        dtype: str = "fp16",
        *,
        replaced: frozenset[str] = frozenset(),
        gelu: str = "erf",
        rows8: bool = False,
    ) -> None:
        super().__init__(device, dtype)
        self.rows8 = rows8
        self.replaced = replaced
        self.gelu = gelu
        # NOTE: tensor cores have no fp32; without them the kernel spills, and torch's own attention is quicker.
        self._attends = "attention" not in replaced and (self.dtype != torch.float32 or INTERPRETED)
        # A graph's attention must not look at the host's numbers.
        self.graph_safe = self._attends
        if self._attends and "relative" not in replaced:
            self.reads_host -= {"relative"}
        self._mixes = "experts" not in replaced and (self.dtype != torch.float32 or INTERPRETED)
        if self._mixes and not rows8:  # those of weights in 8 bits are torch's
            self.reads_host -= {"experts"}
        self._addresses: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def fork(self, quantization: Quantization = "none", parts: int = 3) -> "TritonOps":
        """With "fp8", of ops with `rows8`: the same, but that `matrix` makes weights in 8 bits."""
        if quantization not in ("none", "fp8"):
            return cast(TritonOps, super().fork(quantization))
        if quantization == "fp8" and not self.rows8:
            raise ConfigError("quantization fp8: these ops have no rows in 8 bits", param="quantization")
        other = copy(self)
        other.quantization = quantization
        return other

    def in_16_bits(self) -> "TritonOps":
        """The same without rows in 8 bits."""
        other = copy(self)
        other.rows8 = False
        return other

    def matrix(self, weight: FloatArray | QuantizedWeight) -> Any:
        return self.narrowed(super().matrix(weight))

    def narrowed(self, tensor: torch.Tensor) -> torch.Tensor | Matrix8:
        """A weight [N, K] as these ops keep it: in 8 bits where they make such, and where the sizes fit."""
        fits = all(size % triton_fp8.MULTIPLE == 0 for size in tensor.shape)
        return Matrix8(*triton_fp8.quantize(tensor)) if self.quantization == "fp8" and fits else tensor

    def plain(self, x: Any) -> torch.Tensor:
        return plain(x)

    def arrays(self, batch: Batch, *, fixed: bool = False) -> dict[str, Int32Array]:
        """With the tiles of attention."""
        arrays = super().arrays(batch, fixed=fixed)
        if self._attends:
            arrays["tiles"] = tiles.tiles(batch, fixed=fixed)
            if batch.wanted is not None:
                arrays["wanted_tiles"] = tiles.wanted_tiles(batch, fixed=fixed)
        return arrays

    def to_numpy(self, x: Any) -> Any:
        return super().to_numpy(plain(x))

    def embed(
        self, lookups: Sequence[tuple[torch.Tensor, Any]], norm: Norm | None = None, scale: float = 1.0
    ) -> torch.Tensor:
        tables = [table for table, _ in lookups]
        fits = len(tables) <= triton_norm.MAX_TABLES and tables[0].shape[1] <= triton_norm.MAX_COLUMNS
        otherwise = partial(super().embed, lookups, norm, scale)
        kernel = partial(triton_norm.embed, lookups, norm, scale)
        return self._fused("embed", kernel, otherwise) if fits else otherwise()

    def linear(
        self,
        x: Any,
        weight: Any,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
        residual: Any | None = None,
    ) -> Any:
        y = self._product(x, weight, bias, activation)
        return y if residual is None else self.plus(y, residual)

    def plus(self, x: torch.Tensor, residual: Any) -> Any:
        residual = plain(residual)
        # Rows of a head, in fp32, are not normed next.
        waits = x.dtype != torch.float32 and x.dtype == residual.dtype and "norm" not in self.replaced
        return Sum(x, residual) if waits and x.shape[1] <= triton_norm.MAX_COLUMNS else x + residual

    def norm(self, x: Any, norm: Norm, residual: Any | None = None) -> Any:
        """With a residual, a `Sum`: the next norm adds it on its way."""
        first, added = x.parts if isinstance(x, Sum) else (plain(x), None)
        torch_norm = super().norm

        def otherwise() -> torch.Tensor:
            return torch_norm(plain(x), norm)

        def kernel() -> torch.Tensor:
            # Before a layer's RMSNorm the sum is the next residual; after one with LayerNorm nobody needs it.
            stores_sum = added is not None and norm.kind == "rms"
            narrow = self.rows8 and "rows8" not in self.replaced and first.dtype == self.dtype and residual is None
            function: Any = triton_fp8.norm if narrow else triton_norm.norm
            y, total = function(first, norm, added, stores_sum=stores_sum)
            if total is not None:
                x.added(total)
            return y

        fits = first.shape[-1] <= triton_norm.MAX_COLUMNS and first.is_contiguous()
        y = self._fused("norm", kernel, otherwise) if fits else otherwise()
        return y if residual is None else self.plus(y, residual)

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
        shape: dict[str, Any] = {
            "num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim, "scale": scale,
            "causal": causal, "window": window, "softcap": softcap, "distance_bias": distance_bias,
            "relative": relative,
        }  # fmt: skip
        otherwise = partial(super().attention, qkv, batch, **shape, rows=rows, kept=kept)
        name = "attention" if relative is None else "relative"
        if batch.tiles is None or head_dim > _MAX_HEAD_DIM[name]:
            return otherwise()
        host = batch.host or batch
        kernel = partial(
            triton_attention.attention,
            qkv,
            batch.tiles if rows is None else batch.wanted_tiles,
            batch.cu_seqlens,
            rows=tiles.WANTED_ROWS if rows is not None else tiles.tile_rows(batch.num_tokens, host.max_seqlen),
            **shape,
            wanted=rows,
            seen_lens=batch.seen_lens,
            prefix=None if batch.prefix_of is None else _prefix(qkv, host, kept, num_heads * head_dim),
        )
        return self._fused(name, kernel, otherwise)

    def rotary(self, qkv: Any, cos_sin: torch.Tensor, **heads: Any) -> torch.Tensor:
        qkv = plain(qkv)
        otherwise = partial(super().rotary, qkv, cos_sin, **heads)
        if not cos_sin.is_contiguous():
            return otherwise()
        kernel = partial(triton_rotary.rotary, qkv, cos_sin, **{"q_norm": None, "k_norm": None, **heads})
        return self._fused("rotary", kernel, otherwise)

    def gated(self, x: Any, activation: str) -> Any:
        x = plain(x)
        otherwise = partial(super().gated, x, activation)
        if activation not in triton_gated.ACTIVATIONS or not x.is_contiguous():
            return otherwise()
        if self.rows8 and x.dtype == self.dtype:
            return self._rows8(x, activation, gated=True)
        return self._fused("gated", partial(triton_gated.gated, x, activation), otherwise)

    def activate(self, x: Any, activation: str) -> torch.Tensor:
        x = plain(x)
        return super().activate(x, self._form(activation, x))

    def experts(self, x: Any, experts: Experts, residual: Any | None = None) -> Any:
        x, activation = plain(x), self._form(experts.activation, x)
        otherwise = partial(super().experts, x, experts, residual)
        fits = self._mixes and not self.rows8 and activation in triton_gated.ACTIVATIONS
        if not fits or x.shape[1] > triton_norm.MAX_COLUMNS or not triton_experts.fits(x, experts):
            return otherwise()

        def kernel() -> Any:
            y = triton_experts.mix(x, experts, activation, self._addresses_of(experts))
            return y if residual is None else self.plus(y, residual)

        return self._fused("experts", kernel, otherwise)

    def short_conv(self, x: Any, weight: torch.Tensor, batch: Any, **options: bool) -> torch.Tensor:
        return super().short_conv(plain(x), weight, batch, **options)

    def pool(self, x: Any, batch: Any, mode: PoolMode, *, skip_prompt: bool = False) -> torch.Tensor:
        x = plain(x)
        otherwise = partial(super().pool, x, batch, mode, skip_prompt=skip_prompt)
        if not x.is_contiguous():
            return otherwise()
        kernel = partial(triton_pool.pool, x, batch.cu_seqlens, batch.prompt_lens, mode, skip_prompt=skip_prompt)
        return self._fused("pool", kernel, otherwise)

    def rows(self, x: Any, index: Any) -> torch.Tensor:
        return super().rows(plain(x), index)

    def only(self, x: Any, groups: Any, number: int, blocks: int = 1) -> torch.Tensor:
        return super().only(plain(x), groups, number, blocks)

    def concat(self, tensors: Sequence[Any]) -> torch.Tensor:
        return super().concat([plain(x) for x in tensors])

    def l2_normalize(self, x: Any) -> torch.Tensor:
        x = plain(x)
        otherwise = partial(super().l2_normalize, x)
        if x.dim() != 2 or x.stride(1) != 1 or x.shape[1] > triton_norm.MAX_COLUMNS:
            return otherwise()
        return self._fused("l2_normalize", partial(triton_pool.l2_normalize, x), otherwise)

    def _addresses_of(self, experts: Experts) -> tuple[torch.Tensor, torch.Tensor]:
        """Made once, since a copy to the device waits for it."""
        key = tuple(weight.data_ptr() for weight in (*experts.up, *experts.down))
        if key not in self._addresses:
            self._addresses[key] = triton_experts.addresses_of(experts)
        return self._addresses[key]

    def _form(self, activation: str, x: torch.Tensor) -> str:
        """gelu by its other form, where the option says so and x is not of a head."""
        is_tanh = activation == "gelu" and self.gelu == "tanh" and x.dtype != torch.float32
        return "gelu_tanh" if is_tanh else activation

    def _fused(self, name: str, kernel: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """The kernel's result; torch's, from now on, where it cannot be compiled for this device."""
        if name in self.replaced:
            return otherwise()
        try:
            return kernel()
        except (CompilationError, OutOfResources, PTXASError) as error:
            problem = f"{in_one_line(error):.200}"
        except RuntimeError as error:
            # A pass of the compiler that fails has no type of its own.
            if "PassManager" not in str(error):
                raise
            problem = str(error)[:200]
        self.replaced |= {name}
        logger.warning("the kernel of %s cannot be used here, torch computes it: %s", name, problem)
        return otherwise()

    def _product(self, x: Any, weight: Any, bias: torch.Tensor | None, activation: str | None) -> Any:
        """activation(x @ weight.T + bias)."""
        if isinstance(weight, Matrix8):
            return self._product8(x, weight, bias, activation)
        x = plain(x)
        activation = None if activation is None else self._form(activation, x)
        if activation == "gelu_tanh" and bias is not None and self._has_epilogue(x, weight):
            return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
        return super().linear(x, weight, bias, activation)

    def _product8(self, x: Any, weight: Matrix8, bias: torch.Tensor | None, activation: str | None) -> Any:
        """With an activation, the rows that the next layer reads."""
        rows = x if isinstance(x, Rows8) else self._rows8(plain(x))
        y = triton_fp8.product(rows, weight, bias, self.dtype)
        if activation is None:
            return y
        if activation in triton_gated.ACTIVATIONS and y.shape[1] <= triton_norm.MAX_COLUMNS:
            return self._rows8(y, activation)
        return ACTIVATION[activation](y)

    def _rows8(self, x: torch.Tensor, activation: str = "", *, gated: bool = False) -> Rows8:
        otherwise = partial(triton_fp8.rows_in_torch, x, activation, gated=gated)
        if not x.is_contiguous() or x.shape[1] > triton_norm.MAX_COLUMNS * (2 if gated else 1):
            return otherwise()
        return self._fused("rows8", partial(triton_fp8.rows, x, activation, gated=gated), otherwise)

    def _has_epilogue(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether cuBLASLt takes the GELU, in its tanh form, on the product's way out."""
        return x.device.type == "cuda" and not is_hip() and x.dtype == weight.dtype != torch.float32


def _prefix(qkv: torch.Tensor, batch: Batch, kept: Sequence[torch.Tensor], queries: int) -> torch.Tensor:
    """Keys and values of what sequences begin with, end to end as the tiles count them."""
    found = []
    for source in tiles.prefix_sources(batch):
        if source >= 0:
            found.append(qkv[int(batch.cu_seqlens[source]) : int(batch.cu_seqlens[source + 1]), queries:])
        else:
            found.append(kept[-2 - source])
    return found[0].contiguous() if len(found) == 1 else torch.cat(found)
