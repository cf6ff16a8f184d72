"""Sparse embeddings by routes: SPLADE for what is to be found, and often a weight for each token for queries.

Equals sentence-transformers' SparseEncoder of a Router, whose routes share one masked language model.
"""

from collections.abc import Mapping, Sequence

from rtp_llm.core import Batch, Int32Array, Params, Reads, Rows, SparseVector
from rtp_llm.modules import TOKEN_WEIGHTS, Router
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import Task, TaskSource
from rtp_llm.tasks.splade import Splade, logarithms_of
from rtp_llm.tasks.token_weights import TokenWeights


class RoutedSparse(Task):
    """A SparseVector an input, by its route: one of `splades`, which share a head, or of `tables`.

    What goes through a table is not computed: its row is left as it is, and its tokens say all.
    """

    per_token = False
    reads: Reads = "all"

    def __init__(self, router: Router, splades: Mapping[str, Splade], tables: Mapping[str, TokenWeights]) -> None:
        self.router = router
        self.splades = splades
        self.tables = tables
        self.purposes = router.names
        self._splade = next(iter(splades.values()))
        self.dimension = max(self._splade.dimension, *(len(table.weights) for table in tables.values()), 0)

    @classmethod
    def load(cls, source: TaskSource) -> "RoutedSparse":
        """Each route's own files; the head once."""
        router, folder = source.model_config.router, source.model_config.folder
        assert router is not None
        shared = Splade.load(source)
        splades, tables = {}, {}
        for route, modules in router.routes.items():
            first, last = modules[0], modules[-1]
            if first.kind == TOKEN_WEIGHTS:
                tables[route] = TokenWeights.load(first.folder, folder, source.looked_up[first.folder])
            else:
                splades[route] = shared.with_logarithms(logarithms_of(last))
        return cls(router, splades, tables)

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, vocabulary]: what the routes do differently comes later."""
        return self._splade(ops, hidden_states, batch)

    def check(self, params: Params) -> None:
        """Each input must have a route; `max_active_dims` must be at least 1."""
        self.router.check(params)
        self._splade.check(params)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> list[SparseVector]:
        """Each row, or each text's tokens -> the vectors."""
        vectors = []
        for index, ids in enumerate(input_ids):
            route = self.router.route(params.prompt_name_of(index))
            table = self.tables.get(route)
            if table is not None:
                vectors.append(table.vector(ids, params, self._splade.max_active_dims))
            else:
                vectors.append(self.splades[route].vector(rows[index], params))
        return vectors
