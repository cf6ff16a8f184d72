"""Does a backend compute what NumpyOps computes, on this machine, with this compiler and these drivers?"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rtp_llm.core import FloatArray, Item, pack
from rtp_llm.ops import Experts, Norm, Ops, Relative
from rtp_llm.ops.native_library import INT8_IN_PAIRS
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.ops.weight_only import BITS


def failing_ops(*backends: Ops) -> frozenset[str]:
    """The ops of which some of the backends (one, with its quantizations) differs from NumpyOps on small odd shapes."""
    checks, of_rounded = _self_checks(), _checks_of_rounded()
    return frozenset(
        name
        for ops in backends
        for name, run in (of_rounded if _rounds(ops) else checks).items()
        if not _equal(name, run, ops)
    )


def _rounds(ops: Ops) -> bool:
    """Whether its products are of rows that it rounds: beside whole weights, or those in 8 or 4 bits."""
    return ops.quantization == "bf16_products" or (ops.quantization in BITS and ops.parts == 1)


def numpy_like(ops: Ops) -> NumpyOps:
    """The definition of what these kernels compute."""
    return NumpyOps(ops.quantization, ops.parts, fits_pairs=ops.instruction_set in INT8_IN_PAIRS)


def _equal(name: str, run: Callable[[Ops], Any], ops: Ops) -> bool:
    # NOTE: rows that are rounded may be on either side of a tie: of products one after the other little can be said.
    error = 3e-2 if name == "attention" and _rounds(ops) else 1e-5
    return np.allclose(ops.to_numpy(run(ops)), run(numpy_like(ops)), rtol=1e-4, atol=error)


def _checks_of_rounded() -> dict[str, Callable[[Ops], Any]]:
    """Of what multiplies rounded numbers: linear layers, and attention on their results."""
    rng = np.random.default_rng(1)
    batch = pack([Item(input_ids=np.zeros(n, np.int32), index=i) for i, n in enumerate((3, 1, 37))])
    x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((41, 72), (216, 72)))

    def linear(ops: Ops) -> Any:
        return ops.linear(ops.vector(x), ops.matrix(weight * np.float32(0.125)), activation="gelu")

    return {
        "linear": linear,
        "attention": lambda ops: ops.attention(linear(ops), batch, num_heads=3, num_kv_heads=3, head_dim=24, scale=1.0),
    }


def _self_checks() -> dict[str, Callable[[Ops], Any]]:
    rng = np.random.default_rng(0)
    lengths, heads, head_dim, size = (3, 1, 37), 3, 24, 3 * 24
    batch = pack([Item(input_ids=rng.integers(0, 9, n, dtype=np.int32), index=i) for i, n in enumerate(lengths)])

    def normal(*shape: int) -> FloatArray:
        return rng.standard_normal(shape, dtype=np.float32)

    x, qkv, table, square = normal(41, size), normal(41, 3 * size), normal(50, size), normal(size, size)
    weight, bias, near = normal(size), normal(size), normal(heads, 9)
    seen, seeing, mixture = normal(size, 9), normal(size, 9), normal(5, 67, size) * np.float32(0.125)
    return {
        "embed": lambda ops: ops.embed(
            [(ops.table(table), batch.input_ids), (ops.table(table), batch.position_ids)], scale=3.0
        ),
        "norm": lambda ops: ops.norm(ops.vector(x), Norm(ops.vector(weight), ops.vector(bias), 1e-5), ops.vector(x)),
        "linear": lambda ops: ops.linear(
            ops.vector(x), ops.matrix(square), ops.vector(bias), "gelu", residual=ops.vector(x)
        ),
        "attention": lambda ops: ops.concat(
            [
                ops.attention(
                    ops.vector(qkv), read, num_heads=heads, num_kv_heads=heads, head_dim=head_dim, scale=0.2, **options
                )
                for read, options in (
                    (batch, {}),
                    (replace(batch, seen_lens=np.array((2, 1, 9), np.int32)), {}),
                    (batch, {"distance_bias": ops.vector(near)}),
                    (batch, {"softcap": 1.5}),
                    (batch, {"relative": Relative(ops.vector(seen), ops.vector(seeing))}),
                )
            ]
        ),
        "rotary": lambda ops: ops.rotary(
            ops.vector(qkv),
            ops.vector(x[:, :head_dim]),
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            q_norm=Norm(ops.vector(weight[:head_dim]), None, 1e-5, "rms"),
        ),
        "gated": lambda ops: ops.gated(ops.vector(x), "silu"),
        "activate": lambda ops: ops.activate(ops.vector(x), "gelu"),
        "only": lambda ops: ops.only(ops.vector(x), batch.position_ids % 3, 1, blocks=2),
        "gated_linear": lambda ops: _gated_linear(ops, x, mixture),
        "experts": lambda ops: _experts(ops, x, mixture),
        "pool": lambda ops: ops.pool(ops.vector(x), batch, "mean"),
        "rows": lambda ops: ops.rows(ops.vector(x), batch.cu_seqlens[:-1]),
        "concat": lambda ops: ops.concat([ops.vector(x), ops.vector(x)]),
        "l2_normalize": lambda ops: ops.l2_normalize(ops.vector(x)),
    }


def _gated_linear(ops: Ops, x: FloatArray, weights: FloatArray) -> Any:
    """Of whole panels, whose gates are fused."""
    weight = weights.reshape(-1, x.shape[1])[:128]
    return ops.gated_linear(ops.vector(x), ops.matrix(weight), ops.vector(weight[:, 0]), "silu")


def _experts(ops: Ops, x: FloatArray, weights: FloatArray) -> Any:
    """With relu: a gelu of other last bits may be another number in 8 bits."""
    router, ups, downs = weights[:, 0], weights[:, 1:34], weights[:, 34:]
    experts = Experts(
        router=ops.vector(router),
        up=tuple(map(ops.matrix, ups)),
        down=tuple(ops.matrix(down.T) for down in downs),
        bias=ops.vector(x[0]),
        top_k=2,
        activation="relu",
    )
    return ops.experts(ops.vector(x), experts, ops.vector(x))
