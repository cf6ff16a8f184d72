"""Scores of queries and documents by what the model offers: a reranker's head, MaxSim, or the cosine of vectors."""

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
from msgspec import Meta

from rtp_llm.core import FloatArray, ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.catalog import Wanted, one_of
from rtp_llm.server.chat import check_variables
from rtp_llm.server.turns import Arguments, Result
from rtp_llm.similarity import SCORING_KINDS, max_sim, scored_by, scoring_params, similarity_steps

_MOST_INLINE = 256
# A reranker, wherever it stands among the models; else the first that has vectors.
SCORERS: Wanted = (*one_of(TaskType.RERANK), *one_of(*SCORING_KINDS))
# Where it is a reranker that is asked for: MaxSim ranks, a cosine may do so elsewhere.
BY_MAX_SIM = (TaskType.COLBERT,)
RERANKERS: Wanted = (*one_of(TaskType.RERANK), *one_of(*BY_MAX_SIM))
TemplateVariables: TypeAlias = Annotated[
    dict[str, Any] | None,
    Meta(description="vLLM's: its key `instruction` is `instruction`, and beats it; others are ignored"),
]


def instruction_of(instruction: str | None, variables: Mapping[str, Any] | None) -> str | None:
    """What to look for, by either of vLLM's names for it; InvalidRequest where it is no text, or beside no variable."""
    check_variables(variables)
    given = (variables or {}).get("instruction")
    if given is not None and not isinstance(given, str):
        param = "chat_template_kwargs.instruction"
        raise InvalidRequest(f"{param}: expected a string, got {given!r:.100}", param=param)
    return given or instruction or None


def scoring_request(
    queries: list[str],
    documents: list[str],
    info: ModelInfo,
    params: Params,
    request_id: str | None = None,
    kinds: Sequence[TaskType] = SCORING_KINDS,
) -> Request:
    """One query with each document, or each query with its own.

    A model without vectors of one of the `kinds` is asked to rerank, which it refuses where it cannot.
    """
    if is_paired(info, kinds):
        firsts = queries if len(queries) == len(documents) else queries * len(documents)
        pairs = list(zip(firsts, documents, strict=True))
        return Request(inputs=pairs, tasks=(TaskType.RERANK,), params=params, request_id=request_id)
    kind = scored_by(info.tasks, kinds)
    params = scoring_params(kind, params, len(queries))
    return Request(inputs=[*queries, *documents], tasks=(kind,), params=params, request_id=request_id)


def scores_of(response: Response, num_queries: int, *, max_sim_sum: bool = False) -> Generator[bytes, None, FloatArray]:
    """-> [documents]. MaxSim is the mean over the query's tokens, as FlagEmbedding's; or their sum, as ColBERT's.

    For a `render` to `yield from`: there is an empty piece of the answer after each step of some milliseconds.
    """
    if TaskType.RERANK in response.outputs:
        return np.asarray(response.outputs[TaskType.RERANK])
    ((kind, rows),) = response.outputs.items()
    queries, documents = rows[:num_queries], rows[num_queries:]
    if num_queries == 1:
        pairs = [(queries, documents)]
    else:
        pairs = [(queries[i : i + 1], documents[i : i + 1]) for i in range(num_queries)]
    scores = []
    for left, right in pairs:
        scores.append(np.zeros((1, len(right)), np.float32))
        for _ in similarity_steps(kind, left, right, scores[-1]):
            yield b""
    whole = np.concatenate(scores, axis=1)[0]
    return max_sim(whole, queries, "sum") if kind is TaskType.COLBERT and max_sim_sum else whole


def ranked(scores: FloatArray) -> list[int]:
    """Places, the best first; equal scores keep the request's order."""
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    return order


def scores_at_once(response: Response, *, max_sim_sum: bool) -> FloatArray:
    """`scores_of` one query, for whoever is on a thread of its own."""
    steps = scores_of(response, 1, max_sim_sum=max_sim_sum)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return np.asarray(end.value)


def is_paired(info: ModelInfo, kinds: Sequence[TaskType] = SCORING_KINDS) -> bool:
    """Whether the inputs of a `scoring_request` are pairs; of others, the queries come first."""
    return scored_by(info.tasks, kinds) is TaskType.RERANK


def place_of(info: ModelInfo, index: int, documents: str, kinds: Sequence[TaskType] = SCORING_KINDS) -> str:
    """Of a `scoring_request` with one query, the field by which an input came: a pair by its document's."""
    if is_paired(info, kinds):
        return f"{documents}[{index}]"
    return f"{documents}[{index - 1}]" if index else "query"


async def computed(
    response: Response, work: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """What `work` makes of the response, on a thread where that takes long."""
    if takes_long(response):
        return await asyncio.to_thread(work, *arguments, **named)
    return work(*arguments, **named)


def takes_long(response: Response) -> bool:
    """Whether it is worth a thread to make scores of it: of a vector a token, or of many rows; some milliseconds."""
    return TaskType.COLBERT in response.outputs or len(response.num_tokens) > _MOST_INLINE
