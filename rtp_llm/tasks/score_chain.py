"""The head of a CrossEncoder that is a chain of sentence-transformers' modules, as the Ettin rerankers have it.

A pooling, Dense, LayerNorm, Normalize, Dropout, and at the end a Dense whose columns are called scores. Equals
sentence-transformers' CrossEncoder (5.4 and later).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rtp_llm.core import Batch, FloatArray, Int32Array, Reads, Rows
from rtp_llm.errors import CheckpointError
from rtp_llm.modules import SCORES
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import TaskSource
from rtp_llm.tasks.dense import PoolingModes, Stage, load_pooling, load_stage


@dataclass(frozen=True, slots=True)
class ScoreChain:
    """One row of `num_labels` logits a sequence, of which every token is read; to a task it is a head."""

    per_token: ClassVar[bool] = False
    num_read: ClassVar[None] = None
    last_token: ClassVar[int | None] = None
    pooling: PoolingModes
    stages: Sequence[Stage]
    num_labels: int

    @property
    def reads(self) -> Reads:
        """The rows it is given to read."""
        return self.pooling.reads

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, num_labels]."""
        x = self.pooling(ops, hidden_states, batch)
        for stage in self.stages:
            x = stage(ops, x)
        return x

    def one_row(self, rows: Rows, input_ids: Sequence[Int32Array]) -> FloatArray:
        """A request's rows -> [n, num_labels]."""
        assert not isinstance(rows, list)
        return rows


def load_score_chain(source: TaskSource) -> ScoreChain:
    """The chain, whose last module gives the scores; CheckpointError where it does not begin with a pooling."""
    chain = [module for module in source.model_config.modules or () if module.kind != "Dropout"]
    if chain[0].kind != "Pooling":
        raise CheckpointError(
            f"{source.model_config.folder / 'modules.json'}: the second module is {chain[0].kind}; of a chain that "
            "gives scores only Pooling is served there"
        )
    pooling = load_pooling(chain[0], source.hidden_size)
    dimension, stages = source.hidden_size * len(pooling.modes), []
    for module in chain[1:]:
        features = ("sentence_embedding", *((SCORES,) if module is chain[-1] else ()))
        stage, dimension = load_stage(module, dimension, source.ops, features)
        stages.append(stage)
    return ScoreChain(pooling, stages, dimension)
