"""Dense embeddings by routes that share a transformer and differ in what comes after it, or are tables of tokens.

Equals sentence-transformers' SentenceTransformer with a Router, which older files call Asym. Each batch goes through
all routes: what follows a transformer costs next to nothing beside it, and the batch need not know what its items want.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Reads, Rows
from rtp_llm.errors import CheckpointError
from rtp_llm.modules import TABLES, Router
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import Task, TaskSource
from rtp_llm.tasks.dense import Dense
from rtp_llm.tasks.token_means import TokenMeans


class RoutedDense(Task):
    """One vector an input, by its route: one of `chains`, what follows the transformer there, or of `tables`.

    What goes through a table is not computed: its row is left as it is, and its tokens say all.
    """

    per_token = False
    full_dimension: int

    def __init__(self, router: Router, chains: Mapping[str, Dense], tables: Mapping[str, TokenMeans]) -> None:
        self.router = router
        self.chains = chains
        self.tables = tables
        self.purposes = router.names
        reads = {chain.reads for chain in chains.values()}
        self.reads: Reads = reads.pop() if len(reads) == 1 else "all"
        self._first = next(iter(chains.values()))
        self.dimension = self._first.dimension
        self.full_dimension = self._first.full_dimension
        self.truncate_dim = self._first.truncate_dim
        self._starts = {route: place * self.full_dimension for place, route in enumerate(chains)}
        self.pooling_name = ", ".join(dict.fromkeys(chain.pooling_name for chain in chains.values()))

    @classmethod
    def load(cls, source: TaskSource) -> "RoutedDense":
        """Each route's modules; CheckpointError where their vectors are not of one length."""
        model_config, router = source.model_config, source.model_config.router
        assert router is not None
        chains, tables, sizes = {}, {}, {}
        for route, modules in router.routes.items():
            folder = modules[0].folder
            if modules[0].kind in TABLES:
                tables[route] = TokenMeans.load(modules, source.looked_up[folder])
                sizes[route] = tables[route].dimension
            else:
                own = replace(source, model_config=replace(model_config, modules=modules[1:]))
                chains[route] = Dense.load(own)
                sizes[route] = chains[route].full_dimension
        if len({*sizes.values()}) > 1:
            found = ", ".join(f"{route} {size}" for route, size in sizes.items())
            raise CheckpointError(f"{router.path}: the routes' vectors must be of one length, but they are {found}")
        return cls(router, chains, tables)

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, chains * full_dimension]."""
        vectors = [chain(ops, hidden_states, batch) for chain in self.chains.values()]
        return vectors[0] if len(vectors) == 1 else ops.concat(vectors)

    def check(self, params: Params) -> None:
        """Each input must have a route, and `dimensions` must lie in 1..full_dimension."""
        self.router.check(params)
        self._first.check(params)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> FloatArray:
        """Of each row the columns of its route, or each text's tokens -> [n, dimensions]."""
        assert not isinstance(rows, list)
        routes = [self.router.route(params.prompt_name_of(index)) for index in range(len(input_ids))]
        finished = np.empty((len(routes), params.dimensions or self.dimension), np.float32)
        for route in dict.fromkeys(routes):
            own = [place for place, name in enumerate(routes) if name == route]
            if route in self.tables:
                texts = [input_ids[place] for place in own]
                finished[own] = self.tables[route].finish(texts, params, self.truncate_dim)
            else:
                start = self._starts[route]
                columns = rows[own, start : start + self.full_dimension]
                finished[own] = self.chains[route].finish(columns, params, ())
        return finished
