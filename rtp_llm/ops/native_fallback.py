"""An op whose kernel gives something else than NumpyOps on this machine is done by numpy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rtp_llm.core import FloatArray
from rtp_llm.ops import Experts, Norm, Ops, Relative
from rtp_llm.ops.experts import mix
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


class ExpertsThroughLinear:
    """Stands for `experts`, whose weights are packed: numpy routes and adds up, the kernels of `linear` multiply."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def __call__(self, x: Tensor, experts: Experts, residual: Tensor | None = None) -> Tensor:
        fetch = self._ops.to_numpy
        rows, router = fetch(x), fetch(experts.router)
        added = None if residual is None else fetch(residual)
        experts = replace(experts, bias=None if experts.bias is None else fetch(experts.bias))
        return hosted(mix(rows, NumpyOps().linear(rows, router), experts, self._linear, added))

    def _linear(self, x: FloatArray, weight: Any, bias: None, activation: str | None) -> FloatArray:
        return self._ops.to_numpy(self._ops.linear(hosted(x), weight, bias, activation))


class GatedAfterwards:
    """Stands for `gated_linear`, whose weight is packed: two ops in turn."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def __call__(self, x: Tensor, weight: Any, bias: Tensor | None, activation: str) -> Tensor:
        return self._ops.gated(self._ops.linear(x, weight, bias), activation)


_OF_PACKED_WEIGHTS: dict[str, Callable[[Ops], Callable[..., Tensor]]] = {
    "experts": ExpertsThroughLinear,
    "gated_linear": GatedAfterwards,
}


def stand_in(ops: Ops, op: str) -> Callable[..., Tensor]:
    """What computes an op of `ops` in the place of its kernel."""
    return _OF_PACKED_WEIGHTS[op](ops) if op in _OF_PACKED_WEIGHTS else ThroughNumpy(ops.to_numpy, op)
