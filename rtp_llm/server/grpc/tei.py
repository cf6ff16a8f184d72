"""tei.v1's messages <-> what the engine knows. Every call but Info, Tokenize and Decode ends in `engine.run`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from rtp_llm import __version__
from rtp_llm.config import ServerConfig
from rtp_llm.core import FloatArray, Input, ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.catalog import CLASSIFIERS, Wanted, one_of
from rtp_llm.server.checks import check_count, check_dimensions
from rtp_llm.server.engine_like import EngineLike, Token
from rtp_llm.server.grpc.proto import Message, message
from rtp_llm.server.scoring import BY_MAX_SIM, RERANKERS, place_of, scores_at_once, scoring_request
from rtp_llm.server.tei.frame import dtype_name
from rtp_llm.server.tei.scores import best_first
from rtp_llm.server.token_ids import decoded


@dataclass(frozen=True, slots=True)
class Inference:
    """A call that runs the model.

    to_request  what the message asks for; InvalidRequest where this model or these limits cannot serve it
    render      the answer, without its metadata
    wanted      which models may be asked where the RPC names none
    place       the field by which the input of this number came, where there are several
    """

    to_request: Callable[[Message, ModelInfo, ServerConfig], Request]
    render: Callable[[Message, Response, ModelInfo], Message]
    wanted: Wanted
    place: Callable[[ModelInfo, int], str] | None = None


def _embed(body: Message, info: ModelInfo, config: ServerConfig) -> Request:
    # In proto3 a number that is absent and one that is 0 differ only where the field is optional.
    dimensions = body.dimensions if body.HasField("dimensions") else None
    check_dimensions(dimensions, info)
    params = Params(
        normalize=body.normalize if body.HasField("normalize") else True,
        dimensions=dimensions,
        truncate=body.truncate,
        truncation_side=_side(body),
        prompt_name=_prompt_name(body, info),
    )
    return Request(inputs=[_text(body.inputs)], tasks=(TaskType.DENSE,), params=params)


def _embed_tokens(task: TaskType) -> Callable[[Message, ModelInfo, ServerConfig], Request]:
    def to_request(body: Message, info: ModelInfo, config: ServerConfig) -> Request:
        params = Params(
            normalize=False,
            truncate=body.truncate,
            truncation_side=_side(body),
            prompt_name=_prompt_name(body, info),
        )
        return Request(inputs=[_text(body.inputs)], tasks=(task,), params=params)

    return to_request


def _predict(body: Message, info: ModelInfo, config: ServerConfig) -> Request:
    return _scores([_text(body.inputs)], _label_task(info), body, info)


def _predict_pair(body: Message, info: ModelInfo, config: ServerConfig) -> Request:
    if len(body.inputs) != 2:
        raise InvalidRequest(f"inputs: a pair is two texts, there are {len(body.inputs)}", param="inputs")
    return _scores([_pair(*body.inputs)], _label_task(info), body, info)


def _rerank(body: Message, info: ModelInfo, config: ServerConfig) -> Request:
    if not body.texts:
        raise InvalidRequest("texts is empty: give at least one text", param="texts")
    check_count(len(body.texts), config, "texts")
    return _ranking(body, list(body.texts), info)


def _rerank_one(body: Message, info: ModelInfo, config: ServerConfig) -> Request:
    """One message of RerankStream."""
    return _ranking(body, [body.text], info)


def _ranking(body: Message, texts: list[str], info: ModelInfo) -> Request:
    for text in texts:
        _pair(body.query, text)
    params = _score_params(TaskType.RERANK, body, info)
    return scoring_request([body.query], texts, info, params, kinds=BY_MAX_SIM)


def _scores(inputs: list[Input], task: TaskType, body: Message, info: ModelInfo) -> Request:
    return Request(inputs=inputs, tasks=(task,), params=_score_params(task, body, info))


def _score_params(task: TaskType, body: Message, info: ModelInfo) -> Params:
    activation: Literal["none", "sigmoid"] | None = "none" if body.raw_scores else None
    if activation is None and task is TaskType.RERANK and not info.scores_are_probabilities:
        activation = "sigmoid"  # whatever the checkpoint's own is: these scores lie between 0 and 1
    return Params(activation=activation, truncate=body.truncate, truncation_side=_side(body))


def _label_task(info: ModelInfo) -> TaskType:
    """A reranker is a classifier of one label."""
    return (
        TaskType.RERANK if TaskType.CLASSIFY not in info.tasks and TaskType.RERANK in info.tasks else TaskType.CLASSIFY
    )


def _render_vector(body: Message, response: Response, info: ModelInfo) -> Message:
    return _floats("EmbedResponse", response.outputs[TaskType.DENSE][0])


def _render_sparse(body: Message, response: Response, info: ModelInfo) -> Message:
    (vector,) = response.outputs[TaskType.SPARSE]
    value = message("SparseValue")
    weights = zip(vector.indices.tolist(), vector.values.tolist(), strict=True)
    return message("EmbedSparseResponse")(sparse_embeddings=[value(index=i, value=weight) for i, weight in weights])


def _render_tokens(body: Message, response: Response, info: ModelInfo) -> Message:
    (rows,) = response.outputs[TaskType.TOKENS]
    return message("EmbedAllResponse")(token_embeddings=[_floats("TokenEmbedding", row) for row in rows])


def _render_labels(body: Message, response: Response, info: ModelInfo) -> Message:
    """Best first."""
    ((_, rows),) = response.outputs.items()
    scores = np.atleast_1d(rows[0])
    names = info.labels or tuple(f"LABEL_{i}" for i in range(len(scores)))
    prediction = message("Prediction")
    predictions = [prediction(score=scores[i], label=names[i]) for i in best_first(scores)]
    return message("PredictResponse")(predictions=predictions)


def _render_ranks(body: Message, response: Response, info: ModelInfo) -> Message:
    scores = scores_at_once(response, max_sim_sum=body.raw_scores)
    return ranks(scores, list(body.texts) if body.return_text else None)


def ranks(scores: FloatArray, texts: list[str] | list[str | None] | None) -> Message:
    """Scores [n] -> RerankResponse, best first; of equal scores the last one, as the original's order has it."""
    rank = message("Rank")
    return message("RerankResponse")(
        ranks=[rank(index=i, score=scores[i], text=texts[i] if texts else None) for i in best_first(scores)]
    )


# A classifier, wherever it stands among the models; else a reranker, which has one label.
_LABELLERS: Wanted = (*CLASSIFIERS, *one_of(TaskType.RERANK))
# service/method -> the call; METHODStream is the same for each message of a stream.
INFERENCES: dict[str, Inference] = {
    "Embed/Embed": Inference(_embed, _render_vector, one_of(TaskType.DENSE)),
    "Embed/EmbedSparse": Inference(_embed_tokens(TaskType.SPARSE), _render_sparse, one_of(TaskType.SPARSE)),
    "Embed/EmbedAll": Inference(_embed_tokens(TaskType.TOKENS), _render_tokens, one_of(TaskType.TOKENS)),
    "Predict/Predict": Inference(_predict, _render_labels, _LABELLERS),
    "Predict/PredictPair": Inference(_predict_pair, _render_labels, _LABELLERS),
    "Rerank/Rerank": Inference(
        _rerank, _render_ranks, RERANKERS, place=lambda info, index: place_of(info, index, "texts", BY_MAX_SIM)
    ),
}
# Its messages are ranked together, so it has no rendering of one.
RERANK_ONE = _rerank_one


def tokenize(body: Message, engine: EngineLike) -> Iterator[bytes]:
    """EncodeRequest -> EncodeResponse in pieces, which joined are one; offsets in bytes."""
    name = _prompt_name(body, engine.info())
    text = (engine.prompt(name) if name else "") + _text(body.inputs)
    answer, simple = message("EncodeResponse"), message("SimpleToken")
    character = byte = 0
    for part in engine.token_parts(text, add_special_tokens=body.add_special_tokens):
        byte += len(text[character : part.start].encode())
        # The byte at which each character of the part starts, and at which the part ends.
        starts = [*accumulate((len(letter.encode()) for letter in text[part.start : part.stop]), initial=byte)]
        tokens = [simple(**_facts(token, text, starts, part.start)) for token in part.tokens]
        yield answer(tokens=tokens).SerializeToString()
        character, byte = part.stop, starts[-1]


def _facts(token: Token, text: str, starts: Sequence[int], first: int) -> dict[str, int | str | bool]:
    """The fields of a SimpleToken; `starts` are the bytes of the characters from `first` on."""
    start, stop = token.start, token.stop
    if token.special or start is None or stop is None:
        return {"id": token.id, "text": token.text, "special": True}
    return {"id": token.id, "text": text[start:stop], "start": starts[start - first], "stop": starts[stop - first]}


def decode(body: Message, engine: EngineLike) -> Iterator[bytes]:
    """DecodeRequest -> DecodeResponse."""
    if not body.ids:
        raise InvalidRequest("ids is empty: give at least one token id", param="ids")
    text = decoded(engine, list(body.ids), "ids", skip_special_tokens=body.skip_special_tokens)
    yield message("DecodeResponse")(text=text).SerializeToString()


def describe(engine: EngineLike, config: ServerConfig) -> Message:
    """InfoResponse."""
    info = engine.info()
    is_classifier = TaskType.CLASSIFY in info.tasks or TaskType.TOKEN_CLASSIFY in info.tasks
    kind = "MODEL_TYPE_CLASSIFIER" if is_classifier else "MODEL_TYPE_EMBEDDING"
    kind = "MODEL_TYPE_RERANKER" if TaskType.RERANK in info.tasks else kind
    return message("InfoResponse")(
        version=__version__,
        model_id=info.name,
        model_dtype=dtype_name(info),
        model_type=kind,
        max_concurrent_requests=config.concurrency_limit,
        max_input_length=info.max_seq_len,
        max_batch_tokens=info.max_batch_tokens,
        max_client_batch_size=config.max_client_batch_size,
        tokenization_workers=config.tokenizer_threads,
    )


def _text(text: str) -> str:
    if not text:
        # A client that does not set the field sends the same bytes as one that sets it to "".
        raise InvalidRequest("inputs is empty: give some text", param="inputs")
    return text


def _pair(first: str, second: str) -> Input:
    if not first and not second:
        raise InvalidRequest("both texts of a pair are empty: give some text")
    return first, second


def _side(body: Message) -> Literal["left", "right"]:
    return "left" if body.truncation_direction == 1 else "right"


def _prompt_name(body: Message, info: ModelInfo) -> str | None:
    name: str | None = body.prompt_name if body.HasField("prompt_name") else None
    if name is not None and name not in info.prompts:
        known = ", ".join(info.prompts) or "none"
        raise InvalidRequest(f"prompt_name: {name!r:.100} is not one of {known}", param="prompt_name")
    return name


def _floats(name: str, row: FloatArray) -> Message:
    """A message whose field 1 is `row`, by its wire form: no Python object is made per number."""
    numbers = np.ascontiguousarray(row, dtype="<f4").tobytes()
    return message(name).FromString(b"\x0a" + _varint(len(numbers)) + numbers)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
