"""The vocabulary in which every model and every task is written.

A tensor is opaque: only the backend that made it looks inside. Tensors are packed, [T, ·] with the batch's cu_seqlens;
nothing is ever padded. T: tokens of a batch, B: sequences, H: hidden size, N, K: rows and columns of a weight.

A backend may fuse, reorder in time (a CPU stream, a CUDA stream) or pick other kernels behind these calls; it may not
change what they mean. `NumpyOps` is the definition of right; the results of the others are compared with it. Whatever
the batch, a sequence's result has the same bits: no op may let one sequence's neighbours change the order of a sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from rtp_llm.core import Batch, FloatArray, Int32Array, QuantizedWeight

Tensor: TypeAlias = Any
Weight: TypeAlias = Any
Quantization: TypeAlias = Literal[
    "none", "int8", "int8_weights", "int4_weights", "bf16", "bf16_products", "fp16_products", "fp8"
]  # fmt: skip
PoolMode: TypeAlias = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

# torch.nn activations with the constructor's defaults; `gelu` is the erf form.
ACTIVATIONS = (
    "gelu", "gelu_tanh", "relu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "selu", "celu", "softplus", "softsign",
    "mish", "relu6", "hardtanh", "hardsigmoid", "hardswish", "logsigmoid", "tanhshrink",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Norm:
    """Weights of one normalisation over the last axis: `weight`, `bias` come from `Ops.vector`; statistics in fp32."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    kind: Literal["layer", "rms"] = "layer"


@dataclass(frozen=True, slots=True)
class Relative:
    """Vectors of distances in attention, as DeBERTa has them (He et al. 2021); from `Ops.vector`, finite, or absent.

    keys     [num_heads * head_dim, 2 * reach - 1]: column j - i, counted from the middle, is what query i sees of key
             j's place; beyond the ends, what stands there
    queries  of the same shape: column i - j is what sees key j from query i's place
    """

    keys: Tensor | None
    queries: Tensor | None

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return tuple(table for table in (self.keys, self.queries) if table is not None)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts, in the place of an MLP; a row is computed by `top_k` of them (Shazeer et al. 2017).

    router      [E, H], from `Ops.vector`: no quantization changes which experts a row has
    up, down    E weights [F, H] and E weights [H, F], from `Ops.matrix`, all of one kind
    bias        [H], of all experts together
    activation  of the products with `up`
    """

    router: Tensor
    up: tuple[Weight, ...]
    down: tuple[Weight, ...]
    bias: Tensor | None
    top_k: int
    activation: str


def reach_of(shape: Sequence[int], num_rows: int, name: str = "distance_bias") -> int:
    """`reach` of a table by distance [num_rows, 2 * reach - 1]: keys as far or farther have what stands at its ends."""
    assert len(shape) == 2 and shape[0] == num_rows and shape[1] % 2 == 1, f"{name} is {tuple(shape)}"
    return (shape[1] + 1) // 2


def relative_reach(relative: Relative, num_rows: int) -> int:
    """`reach_of` of its tables, which have one shape; 0 without any."""
    reaches = {reach_of(table.shape, num_rows, "relative") for table in relative.tables}
    assert len(reaches) <= 1, f"relative has tables of {reaches} distances"
    return max(reaches, default=0)


def optional_vector(ops: "Ops", weights: Mapping[str, FloatArray], name: str) -> Tensor | None:
    """`Ops.vector` of a parameter that a model may be without."""
    return ops.vector(weights[name]) if name in weights else None


def layer_norm(ops: "Ops", weights: Mapping[str, FloatArray], name: str, eps: float) -> Norm:
    """The LayerNorm whose parameters are `name` with .weight and, where there is one, .bias."""
    return Norm(ops.vector(weights[f"{name}.weight"]), optional_vector(ops, weights, f"{name}.bias"), eps)


class Ops(Protocol):
    """One backend bound to one stream of execution; not to be shared between threads."""

    name: str
    instruction_set: str
    quantization: Quantization  # of the weights that `matrix` makes; `linear` takes those of any
    parts: int  # as `fork` has them
    # Cores that the next batch may use; where the backend leaves that to a library, it changes nothing.
    num_threads: int

    def fork(self, quantization: Quantization = "none", parts: int = 3) -> "Ops":
        """Another stream of the same backend; weights made by either serve both.

        parts  bf16 parts of each number (3: fp32) that products with weights widened from 8 or 4 bits take, and
               attention on what these and int8 give, where the backend has such products

        ConfigError where the backend cannot quantise so.
        """

    # Weights, once at load.

    def matrix(self, weight: FloatArray | QuantizedWeight) -> Weight:
        """[N, K] as torch.nn.Linear stores it -> a handle for `linear`, packed as the backend likes it.

        Losslessly, unless this stream has a quantization: then as `ops/int8.py` or `ops/weight_only.py` says. What
        is quantised already stays so, on any stream; ConfigError where the backend cannot compute with it.
        """

    def vector(self, values: FloatArray) -> Tensor:
        """[N] -> a bias or a norm's weight; any other fp32 array that an op reads as it is."""

    def table(self, rows: FloatArray) -> Tensor:
        """[V, H] -> an embedding table for `embed`; may stay memory-mapped."""

    # A batch in, a result out.

    def upload(self, batch: Batch) -> Batch:
        """The batch with its arrays where the kernels want them."""

    def to_numpy(self, x: Tensor) -> FloatArray:
        """Waits for the stream; an fp32 array that the caller owns."""

    # Compute.

    def embed(
        self, lookups: Sequence[tuple[Tensor, Int32Array]], norm: Norm | None = None, scale: float = 1.0
    ) -> Tensor:
        """norm(scale * sum) -> [T, H]; the sum over (table [V, H], ids [T]) of the tables' rows, in the given order."""

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """activation(x @ weight.T + bias) + residual -> [T, N]; sums over K in fp32 in one fixed order."""

    def norm(self, x: Tensor, norm: Norm, residual: Tensor | None = None) -> Tensor:
        """LayerNorm (torch.nn.LayerNorm) or RMSNorm over the last axis, + residual -> like x."""

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
        """softmax(scale * q @ k.T + bias) @ v within each sequence -> [T, num_heads * head_dim].

        `qkv` is [T, (num_heads + 2 * num_kv_heads) * head_dim]: all query heads, then key heads, then value heads.
        Query head h reads key head h // (num_heads // num_kv_heads). `causal`: position i sees j <= i. `window`: only
        j with |i - j| < window. Equals torch scaled_dot_product_attention on each sequence alone.

        A sequence with a `batch.prefix_of` goes on where that one ends and sees its keys too; it must be causal. `kept`
        has this layer's tensors of `batch.kept`, [tokens, 2 * num_kv_heads * head_dim]: key heads, then value heads.
        `softcap`: a score, scale * product, becomes softcap * tanh(score / softcap), before a bias is added (Gemma 2).
        `distance_bias` [num_heads, 2 * reach - 1], a `vector`, finite: to the score of query i and key j, positions in
        the sequence, head h adds column clip(j - i, 1 - reach, reach - 1) + reach - 1. T5's bias and ALiBi's are such.
        `relative`: to the product of query i with key j, before it is scaled, head h adds q_i . keys[h, :, j - i] and
        k_j . queries[h, :, i - j]; not behind a prefix.
        Of a sequence with `batch.seen_lens` fewer tokens are keys, its first; a query that sees none yields 0.
        `rows` [R], as `batch.wanted`: only these rows -> [R, num_heads * head_dim], with the bits they have among all.
        """

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
        """`qkv` as `attention` takes it, with its query and key heads normed (where given), then rotated -> like qkv.

        Row t of `cos_sin` [T, head_dim] has the cosines of the angles of token t, then the sines: element i of a head
        turns with element i + head_dim / 2, as transformers' apply_rotary_pos_emb. It may be done in place: `qkv` is
        not to be used again.
        """

    def gated(self, x: Tensor, activation: str) -> Tensor:
        """activation(x[:, :N]) * x[:, N:], x [T, 2 * N] -> [T, N]; SwiGLU with `silu`."""

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """activation(x) -> like x, which is not to be used again: it may be done in place."""

    def gated_linear(self, x: Tensor, weight: Weight, bias: Tensor | None, activation: str) -> Tensor:
        """`gated` of `linear`, weight [2 * N, K] -> [T, N]."""

    def experts(self, x: Tensor, experts: Experts, residual: Tensor | None = None) -> Tensor:
        """sum over e of p[e] * (activation(x @ up[e].T) @ down[e].T), + bias + residual -> [T, H].

        p = softmax(x @ router.T), in fp32 and over all experts; e: the `top_k` of a row where p is largest, of equal
        ones the first, summed in ascending order. So a row depends on itself alone.
        """

    def short_conv(self, x: Tensor, weight: Tensor, batch: Batch, *, causal: bool, masked: bool = False) -> Tensor:
        """after * convolution(before * values), within each sequence, x [T, 3 * N]: before, after, values -> [T, N].

        Column by column, `weight` [K, N], a `vector`: row k is for the token k - (K - 1) from one's own, `causal`, or
        k - K // 2; tokens beyond the sequence's ends count as zeros. Sums in fp32, in the order of k. LFM2's; equals
        torch.nn.Conv1d with groups N on each sequence alone. `masked`: so do those beyond `batch.seen_lens`, whose
        own rows are zeros. Not behind a prefix.
        """

    def pool(self, x: Tensor, batch: Batch, mode: PoolMode, *, skip_prompt: bool = False) -> Tensor:
        """[T, H] -> [B, H] in fp32, as sentence_transformers Pooling does.

        cls: first row; lasttoken: last row; mean; max; mean_sqrt_len_tokens: sum / sqrt(length); weightedmean: weights
        1..length. `skip_prompt` (include_prompt false) masks each sequence's first `prompt_lens` rows; a sequence that
        is all prompt yields zeros (cls: its first row).
        """

    def rows(self, x: Tensor, index: Int32Array) -> Tensor:
        """x[index], index [R] -> [R, H]."""

    def only(self, x: Tensor, groups: Int32Array, number: int, blocks: int = 1) -> Tensor:
        """x with zeros in the rows of other groups; groups [T], as arrays of `upload` -> like x.

        Of as many equal blocks of columns, the first is for the group of this number, the second for the next, …
        """

    def concat(self, tensors: Sequence[Tensor]) -> Tensor:
        """[B, H1], [B, H2], … -> [B, H1 + H2 + …]."""

    def l2_normalize(self, x: Tensor) -> Tensor:
        """Rows divided by max(their L2 norm, 1e-12), as torch.nn.functional.normalize."""
