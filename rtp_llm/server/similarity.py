"""RTP-LLM's similarity: every left text with every right one, by one kind of embedding or by all of them.

POST /v1/embeddings/similarity.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
import numpy as np
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import UnsupportedTask
from rtp_llm.server.catalog import ModelName, Need, Wanted, one_of
from rtp_llm.server.checks import check_count, check_inputs
from rtp_llm.server.dialect import Dialect
from rtp_llm.server.embeddings import default_kind
from rtp_llm.similarity import KINDS, check_weights_go_with, hybrid, hybrid_weights, max_sim, similarity_steps

PATH = "/v1/embeddings/similarity"


class SimilarityBody(msgspec.Struct, kw_only=True):
    """Two lists of texts. Unknown fields are ignored; null means absent."""

    left: Annotated[
        list[str], Meta(description="texts; the answer has a row for each; queries, to a model of late interaction")
    ]
    right: Annotated[list[str], Meta(description="texts; the answer has a column for each; documents, to such a model")]
    kind: Annotated[
        Literal["dense", "sparse", "colbert", "hybrid"] | None,
        Meta(description="what is compared; null: what the checkpoint offers first"),
    ] = None
    weights: Annotated[
        list[float] | None,
        Meta(description="hybrid: of dense, sparse and colbert; their weighted mean is taken; null: 1 each"),
    ] = None
    normalize: Annotated[bool | None, Meta(description="dense and colbert, as in /v1/embeddings")] = None
    model: ModelName = None
    return_response: Annotated[bool | None, Meta(description="ignored, as the original does")] = None


class SimilarityAnswer(msgspec.Struct, kw_only=True):
    """`similarity` has a row per left text and a column per right one."""

    model: str
    similarity: list[list[float]]
    left_response: None = None
    right_response: None = None


def to_request(body: SimilarityBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    """Both lists as one request, so that they share their batches."""
    for name, texts in (("left", body.left), ("right", body.right)):
        check_inputs(texts, config, name)
    inputs = [*body.left, *body.right]
    check_count(len(inputs), config, "right")
    params = Params(normalize=body.normalize, num_queries=len(body.left))
    return Request(inputs=inputs, tasks=tuple(_weights(body, info)), params=params, request_id=request_id)


def _weights(body: SimilarityBody, info: ModelInfo) -> dict[TaskType, float]:
    """The kinds to compare and what each counts."""
    check_weights_go_with(body.kind, body.weights)
    if body.kind == "hybrid":
        weights = hybrid_weights(body.weights, info.tasks)
        missing = [kind.value for kind in weights if kind not in info.tasks]
        if missing or not weights:
            offered = ", ".join(task.value for task in info.tasks)
            raise UnsupportedTask(f"kind: this model offers {offered}; weights ask for {', '.join(missing) or 'none'}")
        return weights
    kind = TaskType(body.kind) if body.kind else default_kind(info)
    if kind not in KINDS:
        raise UnsupportedTask(f"kind: {kind.value} cannot be compared; {', '.join(k.value for k in KINDS)} can")
    return {kind: 1.0}


def render(body: SimilarityBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """Compares, and writes the answer; nothing is in the pieces before the last, at which it may be broken off."""
    middle, weights = len(body.left), _weights(body, info)
    scores = {kind: np.zeros((middle, len(body.right)), np.float32) for kind in weights}
    for kind, table in scores.items():
        outputs = response.outputs[kind]
        for _ in similarity_steps(kind, outputs[:middle], outputs[middle:], table):
            yield b""
        if kind is TaskType.COLBERT:
            scores[kind] = max_sim(table, outputs[:middle], info.max_sim)
    answer = {
        "model": info.name,
        "similarity": hybrid(scores, weights),
        "left_response": None,
        "right_response": None,
    }
    yield orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _wanted(body: SimilarityBody) -> Wanted:
    """A hybrid is of a model with several kinds, where there is one; what is not said, of dense vectors."""
    if body.kind == "hybrid":
        return (Need(frozenset(KINDS), 2), *one_of(*KINDS))
    return one_of(TaskType(body.kind)) if body.kind else (*one_of(TaskType.DENSE), *one_of(*KINDS))


def _place(body: SimilarityBody, info: ModelInfo, index: int) -> str:
    middle = len(body.left)
    return f"left[{index}]" if index < middle else f"right[{index - middle}]"


SIMILARITY: Dialect[SimilarityBody] = Dialect(
    msgspec.json.Decoder(SimilarityBody),
    to_request,
    render,
    _wanted,
    render_on_thread=True,
    place=_place,
)
