"""What is loaded, as a server tells of it."""

from dataclasses import dataclass
from typing import Literal

from rtp_llm.core.request import TaskType


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a server tells of the model it has loaded.

    pooling                   how dense embeddings are pooled, in sentence-transformers' words; empty: there are none
    scores_are_probabilities  of a reranker that is a language model: P(yes), where a cross-encoder has a logit
    max_sim                   what the checkpoint's authors make of a query's vectors' similarities to a document
    full_dimension            how many a request may ask for, where the checkpoint's truncate_dim makes `dimension` less
    empty_prompts             those of the prompts that put nothing before a text
    adapters                  names of the checkpoint's adapters (LoRA), of which a request may choose one
    merged_adapter            the one chosen at load: it is in the weights, and there are no others; empty: none
    lora_modules              those of them that are not the checkpoint's own: to callers, models by their names
    parent                    of what is such a model, the one that it is an adapter of; empty: of others
    needs_adapter             without an adapter its vectors mean nothing: a request must choose one
    aliases                   other names that callers may ask for it by
    weight_bytes              of the checkpoint's tensors
    memory_bytes              by which the process grew while it was loaded; 0 where the system does not tell
    """

    name: str
    model_type: str
    tasks: tuple[TaskType, ...]
    dimension: int
    max_seq_len: int
    vocab_size: int
    backend: str
    instruction_set: str
    num_threads: int
    dtype: str
    max_batch_tokens: int
    prompts: tuple[str, ...] = ()
    empty_prompts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    pooling: str = ""
    adapters: tuple[str, ...] = ()
    merged_adapter: str = ""
    needs_adapter: bool = False
    lora_modules: tuple[str, ...] = ()
    parent: str = ""
    scores_are_probabilities: bool = False
    max_sim: Literal["sum", "mean"] = "mean"
    created: int = 0
    full_dimension: int | None = None
    aliases: tuple[str, ...] = ()
    weight_bytes: int = 0
    memory_bytes: int = 0
