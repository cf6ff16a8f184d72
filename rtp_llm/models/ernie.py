"""ERNIE (Sun et al. 2019 to 2021): BERT, whose texts may be of a kind of task, which adds a vector.

Equals transformers' ErnieModel, where the task is the first, as it is for whoever does not name one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtp_llm.checkpoint import Parameter, Weights
from rtp_llm.models.bert import IGNORED, Bert, BertConfig
from rtp_llm.ops import Ops


@dataclass(frozen=True, kw_only=True)
class ErnieConfig(BertConfig):
    """`task_type_vocab_size` is 0 where no vector of a task is added."""

    task_type_vocab_size: int


class Ernie(Bert):
    """ERNIE 1 to 3."""

    prefix = "ernie."
    ignored = (*IGNORED, r"^embeddings\.task_type_embeddings\.")

    def __init__(self, config: BertConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(config, weights, ops)
        if "task_type" in weights:
            # Every token has a type: what is added to all types is added to all tokens.
            self.token_type = ops.table(weights["token_type"] + weights["task_type"][:1])

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> BertConfig:
        """With the tasks, by default as many as transformers' ErnieConfig has."""
        tasks = hf.get("task_type_vocab_size", 3) if hf.get("use_task_id") else 0
        return ErnieConfig(**vars(super().read_config(hf)), task_type_vocab_size=tasks)

    @classmethod
    def parameters(cls, config: BertConfig) -> dict[str, Parameter]:
        """Those of BERT, and the tasks' vectors."""
        needed = super().parameters(config)
        assert isinstance(config, ErnieConfig)
        if config.task_type_vocab_size:
            shape = (config.task_type_vocab_size, config.embedding_size)
            needed["task_type"] = Parameter(("embeddings.task_type_embeddings.weight",), shape)
        return needed
