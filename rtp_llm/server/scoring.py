"""Scores of queries and documents by what the model offers: a reranker's head, MaxSim, or the cosine of vectors."""

from dataclasses import replace

import numpy as np

from rtp_llm.core import FloatArray, ModelInfo, Output, Params, Request, Response, TaskType
from rtp_llm.server.catalog import Wanted, one_of
from rtp_llm.similarity import similarity

_BY_VECTORS = (TaskType.COLBERT, TaskType.DENSE)
_MOST_INLINE = 256
# A reranker, wherever it stands among the models; else the first that has vectors.
SCORERS: Wanted = (*one_of(TaskType.RERANK), *one_of(*_BY_VECTORS))


def scoring_request(
    queries: list[str], documents: list[str], info: ModelInfo, params: Params, request_id: str
) -> Request:
    """One query with each document, or each query with its own.

    A model without vectors is asked to rerank, which it refuses where it cannot.
    """
    kind = next((task for task in _BY_VECTORS if task in info.tasks), None)
    if TaskType.RERANK in info.tasks or kind is None:
        firsts = queries if len(queries) == len(documents) else queries * len(documents)
        pairs = list(zip(firsts, documents, strict=True))
        return Request(inputs=pairs, tasks=(TaskType.RERANK,), params=params, request_id=request_id)
    params = replace(params, activation=None, normalize=True, num_queries=len(queries))
    return Request(inputs=[*queries, *documents], tasks=(kind,), params=params, request_id=request_id)


def scores_of(response: Response, num_queries: int, *, max_sim_sum: bool = False) -> FloatArray:
    """-> [documents]. MaxSim is the mean over the query's tokens, as FlagEmbedding's; or their sum, as ColBERT's."""
    if TaskType.RERANK in response.outputs:
        return np.asarray(response.outputs[TaskType.RERANK])
    ((kind, rows),) = response.outputs.items()
    queries, documents = rows[:num_queries], rows[num_queries:]
    if num_queries == 1:
        scores = similarity(kind, queries, documents)[0]
    else:
        each = range(num_queries)
        scores = np.array([similarity(kind, queries[i : i + 1], documents[i : i + 1])[0, 0] for i in each], np.float32)
    counts = _token_counts(queries) if kind is TaskType.COLBERT and max_sim_sum else np.float32(1)
    return np.asarray(scores * counts, np.float32)


def takes_long(response: Response) -> bool:
    """Whether it is worth a thread to make scores of it: of a vector a token, or of many rows; some milliseconds."""
    return TaskType.COLBERT in response.outputs or len(response.num_tokens) > _MOST_INLINE


def _token_counts(queries: Output) -> FloatArray:
    return np.array([len(vectors) for vectors in queries], np.float32)
