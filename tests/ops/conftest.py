"""NativeOps in every instruction set that was built and that this CPU runs."""

from collections.abc import Callable
from typing import Any

import pytest

from rtp_llm.ops.native_ops import NativeOps
from tests.ops.data import BUILT, usable_or_skip


@pytest.fixture(params=BUILT)
def instruction_set(request: pytest.FixtureRequest) -> str:
    return usable_or_skip(request.param)


@pytest.fixture
def ops(instruction_set: str) -> NativeOps:
    return NativeOps(instruction_set=instruction_set)


@pytest.fixture(scope="module")
def kept() -> Callable[..., Any]:
    """`kept(compute, *arguments)`: what `compute(*arguments)` gives, once for all backends; no arguments are arrays."""
    found: dict[str, Any] = {}

    def call(compute: Callable[..., Any], *arguments: Any) -> Any:
        key = f"{compute.__module__}.{compute.__qualname__}{arguments}"
        if key not in found:
            found[key] = compute(*arguments)
        return found[key]

    return call
