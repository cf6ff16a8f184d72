"""NativeOps in every instruction set that was built and that this CPU runs."""

import pytest

from rtp_llm.ops.native_ops import NativeOps
from tests.ops.data import BUILT, usable_or_skip


@pytest.fixture(params=BUILT)
def instruction_set(request: pytest.FixtureRequest) -> str:
    return usable_or_skip(request.param)


@pytest.fixture
def ops(instruction_set: str) -> NativeOps:
    return NativeOps(instruction_set=instruction_set)
