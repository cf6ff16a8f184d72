"""Rows in 8 bits on a GPU, and what multiplies them: beside torch, and a layer of them beside NumpyOps."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.ops import Norm
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import normal
from tests.ops.interpreter import DEVICE

torch = pytest.importorskip("torch")

from rtp_llm.ops import triton_fp8  # noqa: E402
from rtp_llm.ops.triton_ops import TritonOps  # noqa: E402
from tests.ops.test_triton_ops import rounded, there  # noqa: E402


def test_fp8_rows_and_their_product() -> None:
    """As torch makes them; the product of what was rounded is that in fp32."""
    x, weight, bias = there(normal(5, 96)), there(normal(32, 96)), there(normal(32))
    ours, theirs = triton_fp8.rows(x), triton_fp8.rows_in_torch(x)
    torch.testing.assert_close(ours.scales, theirs.scales)
    # Half of the step between two numbers: an eighth of the lower at most, or 2**-9 among the least.
    torch.testing.assert_close(ours.widened(), x, rtol=1 / 16, atol=ours.scales.max().item() * 2**-10)
    matrix = triton_fp8.Matrix8(*triton_fp8.quantize(weight))
    y = triton_fp8.product(ours, matrix, bias, torch.float32)
    # A GPU's product is rounded to bf16.
    bounds = {} if DEVICE == "cpu" else {"rtol": 2**-7, "atol": 2**-5}
    torch.testing.assert_close(y, ours.widened() @ (matrix.values.float() * matrix.scales).T + bias, **bounds)


def steps(values: Any) -> Any:
    """Numbers in e4m3 counted from zero."""
    codes = values.view(torch.uint8).int()
    return torch.where(codes >= 128, 128 - codes, codes)


@pytest.mark.parametrize("activation", ["", "silu", "gelu"])
@pytest.mark.parametrize("gated", [False, True])
def test_fp8_rows_of_what_is_computed(gated: bool, activation: str) -> None:
    x = there(3 * normal(5, 144)).half()
    ours = triton_fp8.rows(x, activation, gated=gated)
    theirs = triton_fp8.rows_in_torch(x, activation, gated=gated)
    torch.testing.assert_close(ours.scales, theirs.scales)
    # A number in the middle of two may be rounded to either, and to no other.
    apart = (steps(ours.values) - steps(theirs.values)).abs()
    assert apart.max() <= 1 and (apart == 0).float().mean() > 0.99


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_fp8_rows_tell_of_what_is_not_a_number(poison: float) -> None:
    x = normal(3, 32)
    x[1, 5] = poison
    for make in (triton_fp8.rows, triton_fp8.rows_in_torch):
        spoilt = torch.isnan(make(there(x)).widened()).all(dim=1)
        assert spoilt.tolist() == [False, True, False]


def test_a_layer_in_fp8() -> None:
    """Norms and gates hand on rows in 8 bits; what reads anything else of them gets the numbers."""
    ops = TritonOps(DEVICE, "fp16", rows8=True)
    x, square = rounded(normal(5, 96), "fp16"), rounded(normal(96, 96) / np.float32(10), "fp16")
    layer, head = ops.fork("fp8"), ops.matrix(square)
    norm, narrow = Norm(ops.vector(square[0]), None, 1e-5, "rms"), layer.matrix(square)
    assert isinstance(narrow, triton_fp8.Matrix8) and isinstance(head, torch.Tensor)
    normed = ops.norm(ops.linear(ops.vector(x), narrow, residual=ops.vector(x)), norm)
    gated = ops.gated(ops.linear(normed, narrow), "silu")
    assert isinstance(normed, triton_fp8.Rows8) and isinstance(gated, triton_fp8.Rows8)
    exact = NumpyOps()
    total = exact.linear(x, square, residual=x)
    expected = exact.linear(exact.norm(total, Norm(square[0], None, 1e-5, "rms")), square)
    for weight in (narrow, head):
        ours = ops.to_numpy(ops.linear(normed, weight))
        cosine = (ours * expected).sum() / np.linalg.norm(ours) / np.linalg.norm(expected)
        assert cosine > 0.998
    assert ops.rows(normed, torch.tensor([0, 2], device=DEVICE)).shape == (2, 96) and not ops.replaced
