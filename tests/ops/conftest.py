"""NativeOps in every instruction set that was built and that this CPU runs."""

import pytest

from rtp_llm.ops.native_library import INSTRUCTION_SETS, usable
from rtp_llm.ops.native_ops import NativeOps


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> str:
    if request.param not in usable():
        pytest.skip(f"{request.param}: not built, or not for this CPU: pip install -e .")
    return str(request.param)


@pytest.fixture
def ops(instruction_set: str) -> NativeOps:
    return NativeOps(instruction_set=instruction_set)
