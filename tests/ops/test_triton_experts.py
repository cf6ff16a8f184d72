"""A mixture of experts on Triton beside NumpyOps: any choice of experts, laid out without the host."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray
from tests.ops.interpreter import DEVICE
from tests.ops.test_experts import SHAPES, Shape, arrays_of, experts_of
from tests.ops.test_triton_ops import assert_close, rounded
from tests.ops.test_triton_ops import dtype as dtype

torch = pytest.importorskip("torch")

from rtp_llm.ops import triton_check, triton_experts  # noqa: E402
from rtp_llm.ops.torch_ops import TorchOps  # noqa: E402
from rtp_llm.ops.triton_experts import tiles_of  # noqa: E402
from rtp_llm.ops.triton_ops import TritonOps  # noqa: E402


def arrays_in(dtype: str, shape: Shape) -> list[FloatArray]:
    return [rounded(array, dtype) for array in arrays_of(shape)]


def run(arrays: Sequence[FloatArray], top_k: int, activation: str = "gelu") -> Any:
    def on(ops: Any) -> Any:
        return ops.experts(ops.vector(arrays[0]), experts_of(ops, arrays, top_k, activation), ops.vector(arrays[-1]))

    return on


@pytest.fixture(autouse=True)
def only_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's way, which waits for the device, is for TorchOps."""
    experts = TorchOps.experts

    def theirs(ops: TorchOps, *given: Any) -> Any:
        assert not isinstance(ops, TritonOps)
        return experts(ops, *given)

    monkeypatch.setattr(TorchOps, "experts", theirs)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[2], SHAPES[3], (90, 136, 70, 64, 6)])
def test_experts(shape: Shape, dtype: str) -> None:
    assert_close(run(arrays_in(dtype, shape), shape[-1]), dtype)


def test_experts_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_experts, "_MANY_ROWS", 100)
    assert_close(run(arrays_in("fp16", (300, 40, 136, 3, 3)), 3), "fp16")


@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
def test_other_activations(activation: str) -> None:
    assert_close(run(arrays_in("fp16", SHAPES[3]), 2, activation), "fp16")


def test_experts_that_nobody_chooses() -> None:
    arrays = arrays_in("fp16", SHAPES[3])
    arrays[0][:, 0], arrays[1][:, 0] = 9, [0, 0, 9, 0, 0, 0, 9, 0]
    assert_close(run(arrays, 2), "fp16")


def test_without_rows_and_what_is_not_finite() -> None:
    ops, arrays = TritonOps(DEVICE, "fp16"), arrays_in("fp16", SHAPES[3])
    experts = experts_of(ops, arrays, 2)

    def rows(x: FloatArray) -> FloatArray:
        return np.asarray(ops.to_numpy(ops.experts(ops.vector(x), experts)))

    assert rows(arrays[0][:0]).shape == (0, 72)
    whole = rows(arrays[0])
    arrays[0][4, 3] = np.nan
    spoilt = rows(arrays[0])
    assert np.isnan(spoilt[4]).all()
    np.testing.assert_array_equal(np.delete(spoilt, 4, axis=0), np.delete(whole, 4, axis=0))


@pytest.mark.parametrize(
    ("num_rows", "num_experts", "top_k"), [(1, 1, 1), (1, 8, 2), (70, 8, 2), (257, 3, 3), (90, 64, 6)]
)
@pytest.mark.parametrize("block_m", [32, 128])
def test_tiles_hold_each_place_once(num_rows: int, num_experts: int, top_k: int, block_m: int) -> None:
    random = np.random.default_rng(num_rows)
    for often in (num_experts, top_k):  # all experts, and no more than a row has
        chosen = np.stack([random.permutation(often)[:top_k] for _ in range(num_rows)])
        places, tiles = tiles_of(torch.from_numpy(chosen), num_experts, block_m)
        found = []
        for expert, first, last in tiles.tolist():
            assert 0 <= last - first <= block_m
            some = places[first:last].tolist()
            assert all(chosen.reshape(-1)[place] == expert for place in some)
            found += some
        assert sorted(found) == list(range(num_rows * top_k))


def test_addresses_are_copied_once() -> None:
    ops, arrays = TritonOps(DEVICE, "fp16"), arrays_in("fp16", SHAPES[2])
    experts = experts_of(ops, arrays, 2)
    first, again = ops._addresses_of(experts), ops._addresses_of(experts)
    assert first is again and first[0].tolist() == [weight.data_ptr() for weight in experts.up]


def test_weights_in_8_bits_are_torchs() -> None:
    reads = [TritonOps(DEVICE, "fp16", rows8=rows8).reads_host for rows8 in (True, False)]
    assert ["experts" in each for each in reads] == [True, False]


def test_the_check_at_start_tries_the_kernels_of_ops_with_8_bits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tries them in 16 bits, as a benchmark of a device that has both does."""
    monkeypatch.setattr(triton_experts, "mix", lambda x, *_: torch.zeros_like(x))
    wanted = {name: run for name, run in triton_check._checks(torch.float16) if name == "experts"}
    monkeypatch.setattr(triton_check, "_checks", lambda _: iter(wanted.items()))
    assert list(triton_check._failing(TritonOps(DEVICE, "fp16", rows8=True).in_16_bits())) == ["experts"]
