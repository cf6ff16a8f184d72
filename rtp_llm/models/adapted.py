"""Adapters (LoRA, Hu et al. 2021) that a sequence chooses, on a model's linear layers and tables.

What an adapter adds is computed beside the weight, for the rows that chose it, and added before the activation: the
weight stays what it is, in whatever form it is kept, and a row without an adapter has the bits of a model without any.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rtp_llm.checkpoint import AdapterSource, LowRank
from rtp_llm.core import NO_ADAPTER, Batch, Int32Array
from rtp_llm.ops import Norm, Ops, Tensor, Weight

if TYPE_CHECKING:
    from rtp_llm.models import Model


# Up to so many columns of all adapters together are computed for every row: one product takes less time than several.
_MOST_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class _Part:
    """Of so many adapters from `first` on: `a` [count * rank, K], of a table rows [V, count * rank], and
    `b` [N, count * rank], scaled.
    """

    first: int
    count: int
    a: Any
    b: Weight

    def is_for(self, number: int) -> bool:
        return self.first <= number < self.first + self.count


@dataclass(frozen=True, slots=True, eq=False)
class _Adapted:
    """A weight or a table, and what adapters add to it."""

    plain: Any
    parts: tuple[_Part, ...]

    def __len__(self) -> int:
        return len(self.plain)


def adapt(model: "Model", source: AdapterSource, names: Sequence[str], ops: Ops) -> None:
    """Give a loaded model the adapters of these names, in the order of their numbers.

    `ops` made the model's weights; whatever these are kept in, the adapters are not quantised.
    """
    exact, numbers, layers = ops.fork(), range(len(names)), list(model.layers)
    for (number, attribute), tensors in model.matrices.items():
        low = _together([_stacked(source, tensors, adapter) for adapter in numbers])
        layer = layers[number]
        parts = [_Part(*which, exact.matrix(own.columns), exact.matrix(own.rows)) for which, own in low]
        layers[number] = replace(layer, **{attribute: _adapted(getattr(layer, attribute), parts)})
    for attribute, tensor in model.tables.items():
        low = _together([source.low_rank(tensor, adapter) for adapter in numbers])
        parts = [_Part(*which, exact.table(own.rows), exact.matrix(own.columns.T)) for which, own in low]
        setattr(model, attribute, _adapted(getattr(model, attribute), parts))
    model.layers, model.adapters = layers, tuple(names)


def _adapted(plain: Any, parts: list[_Part]) -> Any:
    return _Adapted(plain, tuple(parts)) if parts else plain


def _together(low: Sequence[LowRank | None]) -> list[tuple[tuple[int, int], LowRank]]:
    """What adapters add to a weight -> (the first's number, how many), and theirs: all with one rank, or each alone."""
    there = [(number, own) for number, own in enumerate(low) if own is not None]
    rank = max((len(own.columns) for _, own in there), default=0)
    if len(there) < 2 or rank * len(low) > _MOST_TOGETHER:
        return [((number, 1), own) for number, own in there]
    rows = np.zeros((len(there[0][1].rows), len(low), rank), np.float32)
    columns = np.zeros((len(low), rank, there[0][1].columns.shape[1]), np.float32)
    for number, own in there:
        rows[:, number, : len(own.columns)], columns[number, : len(own.columns)] = own.rows, own.columns
    together = LowRank(rows.reshape(len(rows), -1), columns.reshape(len(low) * rank, -1))
    return [((0, len(low)), together)]


def _stacked(source: AdapterSource, tensors: Sequence[str], adapter: int) -> LowRank | None:
    """What the adapter adds to a weight that is made of these tensors, one below the other."""
    parts = [source.low_rank(tensor, adapter) for tensor in tensors]
    if len(parts) == 1 or not any(parts):
        return parts[0]
    heights = [source.tensors[tensor].shape[0] for tensor in tensors]
    ranks = [0 if part is None else len(part.columns) for part in parts]
    rows, row, column = np.zeros((sum(heights), sum(ranks)), np.float32), 0, 0
    for part, height, rank in zip(parts, heights, ranks, strict=True):
        if part is not None:
            rows[row : row + height, column : column + rank] = part.rows
        row, column = row + height, column + rank
    return LowRank(rows, np.concatenate([part.columns for part in parts if part is not None]))


def chosen(ops: Ops, batch: Batch) -> Ops:
    """The ops by which a model with adapters computes this batch."""
    return cast(Ops, _AdaptedOps(ops, batch))


class _AdaptedOps:
    """Ops whose products and `embed` read adapted weights; of a batch with rows [T], or the wanted ones [R]."""

    def __init__(self, ops: Ops, batch: Batch) -> None:
        self._ops, self._batch = ops, batch
        self._numbers = [number for number in batch.adapter_numbers if number != NO_ADAPTER]
        self._is_mixed = len(batch.adapter_numbers) > 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def linear(
        self,
        x: Tensor,
        weight: Any,
        bias: Tensor | None = None,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        ops = self._ops
        if not isinstance(weight, _Adapted):
            return ops.linear(x, weight, bias, activation, residual)
        assert activation is None or residual is None, "what is added before the activation, and what after it"
        for part in self._parts(weight):
            residual = ops.linear(self._own(ops.linear(x, part.a), part), part.b, residual=residual)
        y = ops.linear(x, weight.plain, bias, residual=residual)
        # Also where nothing is added: fused, it might round otherwise, and a row's neighbours would show.
        return y if activation is None else ops.activate(y, activation)

    def gated_linear(self, x: Tensor, weight: Any, bias: Tensor | None, activation: str) -> Tensor:
        if not isinstance(weight, _Adapted):
            return self._ops.gated_linear(x, weight, bias, activation)
        return self._ops.gated(self.linear(x, weight, bias), activation)

    def embed(self, lookups: Sequence[tuple[Any, Int32Array]], norm: Norm | None = None, scale: float = 1.0) -> Tensor:
        ops = self._ops
        adapted = [(table, ids) for table, ids in lookups if isinstance(table, _Adapted)]
        if not adapted:
            return ops.embed(lookups, norm, scale)
        x = ops.embed(
            [(table.plain if isinstance(table, _Adapted) else table, ids) for table, ids in lookups], scale=scale
        )
        for table, ids in adapted:
            for part in self._parts(table):
                x = ops.linear(self._own(ops.embed([(part.a, ids)], scale=scale), part), part.b, residual=x)
        return x if norm is None else ops.norm(x, norm)

    def _parts(self, adapted: _Adapted) -> list[_Part]:
        """Those that some row of the batch chose."""
        return [part for part in adapted.parts if any(map(part.is_for, self._numbers))]

    def _own(self, low: Tensor, part: _Part) -> Tensor:
        """[rows, count * rank] with zeros for the adapters that a row did not choose."""
        if part.count == 1 and not self._is_mixed:
            return low
        batch = self._batch
        groups = batch.adapters if low.shape[0] == batch.num_tokens else batch.wanted_adapters
        assert groups is not None
        return self._ops.only(low, groups, part.first, part.count)
