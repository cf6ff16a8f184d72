"""An op whose kernel gives something else than NumpyOps on this machine is done by numpy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rtp_llm.core import FloatArray
from rtp_llm.ops import Norm, Relative
from rtp_llm.ops.native_library import Table
from rtp_llm.ops.native_stream import Tensor, hosted
from rtp_llm.ops.numpy_ops import NumpyOps


class ThroughNumpy:
    """Stands for an op whose kernel failed the self-check: the stream is run, numpy computes."""

    def __init__(self, fetch: Callable[[Tensor], FloatArray], op: str) -> None:
        self._fetch = fetch
        self._op = getattr(NumpyOps(), op)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return hosted(self._op(*map(self._to_host, args), **{k: self._to_host(v) for k, v in kwargs.items()}))

    def _to_host(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._fetch(value) if value.host is None else value.host
        if isinstance(value, Table):
            return value.widened()
        if isinstance(value, Norm):
            return replace(value, weight=self._to_host(value.weight), bias=self._to_host(value.bias))
        if isinstance(value, Relative):
            return Relative(self._to_host(value.keys), self._to_host(value.queries))
        if isinstance(value, (list, tuple)):
            return [self._to_host(item) for item in value]
        return value
