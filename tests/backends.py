"""The backends that this machine can run, for parametrised tests."""

from collections.abc import Callable

import pytest

from rtp_llm.errors import ConfigError
from rtp_llm.ops import Ops
from rtp_llm.ops.numpy_ops import NumpyOps


def _native() -> Ops:
    from rtp_llm.ops.native_ops import NativeOps

    try:
        return NativeOps()
    except ConfigError as error:
        pytest.skip(error.message)


def _torch() -> Ops:
    pytest.importorskip("torch")
    from rtp_llm.ops.torch_ops import TorchOps

    return TorchOps()


BACKENDS: dict[str, Callable[[], Ops]] = {"numpy": NumpyOps, "native": _native, "torch": _torch}
