"""The GPU benchmark of the kernels runs to its end on the CPU, where its errors mean something and its times do not."""

from dataclasses import replace
from typing import Any

import pytest

from rtp_llm.ops import tiles
from tests.ops import interpreter as _  # noqa: F401

pytest.importorskip("torch")

from benchmarks import gpu_kernels


@pytest.mark.slow
def test_the_dry_run_has_a_row_for_each_kernel() -> None:
    rows = list(gpu_kernels.measured("cpu", gpu_kernels.TINY))
    names = {row.name.split()[0] for row in rows}
    assert names == {"attention", "relative", "layer", "rms", "embed", "pool", "l2_normalize", "gated", "rotary", "fp8"}
    assert not [row for row in rows if not row.ok]
    assert gpu_kernels.show(rows).count("\n") == len(rows) + 1


def test_attention_is_measured_in_tiles_of_both_sizes() -> None:
    names = [case.name for case in gpu_kernels.attention_cases(gpu_kernels.Sizes(lengths=(32, 128)))]
    assert names[:3] == [f"attention bge-small S={end}" for end in ("32", "128", "128, tiles of 64")]
    batch = gpu_kernels.batch_of(5000, 128)
    found: Any = [tiles.tiles(one).reshape(-1, tiles.FIELDS) for one in (batch, replace(batch, max_seqlen=64))]
    assert [int((one[:, 1] - one[:, 0]).max()) for one in found] == [128, 64]


def test_lengths_are_mixed() -> None:
    lengths = [int(n) for n in gpu_kernels.batch_of(1000, 100).cu_seqlens]
    assert lengths[0] == 0 and lengths[-1] == 1000 and len(set(lengths)) > 8
