"""What a caller asks: inputs, the tasks that each is answered by, and what may vary from request to request."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import Enum
from typing import Any, Literal, NamedTuple, TypeAlias

from rtp_llm.records import record
from rtp_llm.sides import side_of

Input: TypeAlias = str | tuple[str, str] | list[int]
# How soon a request's work is taken up; see Request.
Priority: TypeAlias = Literal["auto", "interactive", "bulk"]
# What becomes of a text that is longer than the model reads; see Params.
Chunking: TypeAlias = Literal["mean", "late"]
# How tokens become entities, in transformers' words; see Params.
AggregationStrategy: TypeAlias = Literal["none", "simple", "first", "average", "max"]


class TaskType(str, Enum):
    """What a caller can ask a checkpoint for."""

    DENSE = "dense"
    SPARSE = "sparse"
    COLBERT = "colbert"
    TOKENS = "tokens"
    RERANK = "rerank"
    CLASSIFY = "classify"
    TOKEN_CLASSIFY = "token_classify"
    CUSTOM = "custom"


# Of those, what gives a row of numbers for each token.
OF_TOKENS = frozenset({TaskType.COLBERT, TaskType.TOKENS, TaskType.TOKEN_CLASSIFY})


@record(frozen=True, slots=True, kw_only=True)
class Params:
    """What a caller may vary per request; every default means "as the checkpoint says".

    dimensions          Matryoshka: slice the vector, then normalise it again; None or the native size: no-op
    normalize           None: the checkpoint's own module chain; True: L2 afterwards; False: stop before its Normalize
    activation          of scores and logits; None: the checkpoint's own
    instruction         what a language model that reranks is told to look for; None: its authors' own
    return_tokens       sparse vectors carry their tokens
    max_active_dims     of a sparse vector, how many of its weights are kept, the largest; None: the checkpoint's word
    truncate            False: an input over the limit is an error
    truncation          how a pair over the limit is cut: the longer side first, as sentence-transformers does; or only
                        the second, after cutting the first to three quarters of the limit, as FlagEmbedding does; or
                        only the first, as transformers' zero-shot pipeline does
    max_tokens          a limit below the model's own
    max_tokens_per_doc  the second text of a pair is cut to so many tokens, before the pair is cut to the limit; so are
                        single texts, but for the first `num_queries`
    num_queries         of single texts, how many at the start are queries and not documents; None: `prompt_name` tells
    truncation_side     which end an over-long input loses; None: the checkpoint's, right where it does not say
    chunking            of dense vectors. mean: an over-long text is cut into chunks, whose vectors are averaged; late:
                        the inputs are the chunks of one text, which is read at once; see rtp_llm/engine/chunker.py
    aggregation_strategy  of a token classifier: entities instead of scores, by these rules; see rtp_llm/entities.py
    ignore_labels       of entities: labels that are left out
    stride              of entities: tokens that the windows of an over-long text have in common; None: it is cut
    prompt              text put before each input; None: `prompt_name`, else the checkpoint's default prompt
    prompt_name         a key of the checkpoint's prompts
    adapter             one of `ModelInfo.adapters`, by its name; None: none
    add_special_tokens  False: [CLS] and [SEP] are left out
    is_rendered         the inputs are conversations that the chat template has written: no template is put around them
    extra               whatever a custom module wants to know of a request; no other task looks at it
    """

    dimensions: int | None = None
    normalize: bool | None = None
    activation: Literal["none", "sigmoid", "softmax"] | None = None
    instruction: str | None = None
    return_tokens: bool = False
    max_active_dims: int | None = None
    truncate: bool = True
    truncation: Literal["longest_first", "only_second", "only_first"] = "longest_first"
    max_tokens: int | None = None
    max_tokens_per_doc: int | None = None
    num_queries: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    chunking: Chunking | None = None
    aggregation_strategy: AggregationStrategy | None = None
    ignore_labels: tuple[str, ...] = ("O",)
    stride: int | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    adapter: str | None = None
    add_special_tokens: bool = True
    is_rendered: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def prompt_name_of(self, index: int) -> str | None:
        """The name under which the input at this place is read: its side's, where there are queries first."""
        if self.num_queries is None:
            return self.prompt_name
        return "query" if index < self.num_queries else "document"

    def is_query(self, index: int) -> bool:
        """Whether the input at this place is a query, to a model that reads documents differently."""
        return side_of(self.prompt_name_of(index)) == "query"


class AnswerLimit(NamedTuple):
    """What the vectors of a request's tokens may take, in all, and what one of their numbers does."""

    max_bytes: int
    number_bytes: int


class Whole:
    """What several requests are parts of, which is one to its caller: how it ends is counted once.

    has_begun  a part has been let in: what waits now may be this one's own, and is no reason to refuse the others
    """

    __slots__ = ("__weakref__", "_ends", "has_begun")

    def __init__(self) -> None:
        self._ends = itertools.count()
        self.has_begun = False

    def end(self) -> bool:
        """It ends, whatever becomes of its other parts -> whether it had not ended before. From any thread."""
        return next(self._ends) == 0


@record(frozen=True, slots=True, kw_only=True)
class Request:
    """One call: `inputs` are answered in order, each by every task of `tasks`.

    priority  interactive work overtakes bulk work; auto: what fits one step is interactive
    deadline  as time.monotonic() counts: what has not been computed by then is not computed
    answer_limit  of tasks with a vector a token, for which no other limit is one of memory; None: none
    whole     what it is a part of; None: a request of its own
    patient   where there is no room, its caller waits and asks again: that is no refusal
    """

    inputs: Sequence[Input]
    tasks: tuple[TaskType, ...] = (TaskType.DENSE,)
    params: Params = field(default_factory=Params)
    request_id: str | None = None
    priority: Priority = "auto"
    deadline: float = math.inf
    answer_limit: AnswerLimit | None = None
    whole: Whole | None = None
    patient: bool = False

    def end(self) -> bool:
        """It ends without an answer -> whether that is to be counted: of the parts of a whole, only the first one's."""
        return self.whole is None or self.whole.end()
