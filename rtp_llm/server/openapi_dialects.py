"""The routes of other servers' dialects, as rows for the OpenAPI description; each with an example that works."""

from dataclasses import dataclass
from typing import Any

from rtp_llm.server import cohere, rerank, tokenize, vllm
from rtp_llm.server.errors import ErrorAnswer, MessageError, TeiError
from rtp_llm.server.tei import embed, routes, scores, tokens

_TEXTS = ["a cat sat on the mat", "a dog lay on the rug"]
_PANDA = ["hi", "The giant panda is a bear endemic to China."]
_NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "number"}}


@dataclass(frozen=True, slots=True)
class Row:
    """One POST: `bodies` are told apart by their keys; `answer` is a type, or a schema with types in it."""

    path: str
    tag: str
    summary: str
    bodies: tuple[type, ...]
    answer: Any
    example: dict[str, Any]
    errors: tuple[type, ...] = (ErrorAnswer,)

    @property
    def statuses(self) -> tuple[str, ...]:
        """Of failures."""
        tei = ("422", "424") if TeiError in self.errors else ()
        return ("400", "404", "413", "415", *tei, "429", "500", "503")


def _array(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _any(*items: Any) -> dict[str, Any]:
    return {"anyOf": list(items)}


_TEI, _COHERE, _BOTH = (TeiError,), (MessageError,), (ErrorAnswer, TeiError)
_PREDICTIONS = _array(scores.Prediction)
_PREDICTED = _any(_PREDICTIONS, _array(_PREDICTIONS))
_BY_MODEL = _any(_array(_any(_NUMBERS, {"type": "number"}, _array(embed.SparseValue))), _PREDICTED, _array(scores.Rank))
_ROOT_BODIES = (embed.EmbedBody, embed.SentenceSimilarityBody, scores.PredictBody, scores.TextsBody)

ROWS = (
    Row("/rerank", "rerank", "Score documents for a query; with `texts`, in TEI's form",
        (rerank.RerankBody, scores.TextsBody), _any(rerank.RerankAnswer, _array(scores.Rank)),
        {"query": "what is a panda?", "documents": _PANDA}, _BOTH),
    *(Row(path, "rerank", "Score documents for a query, as Cohere, Jina, Voyage and vLLM", (rerank.RerankBody,),
          rerank.RerankAnswer, {"query": "what is a panda?", "documents": _PANDA, "top_n": 1},
          (ErrorAnswer,) if path == "/v1/rerank" else _COHERE) for path in rerank.PATHS[1:]),
    Row(cohere.PATH, "embeddings", "Vectors by type, as Cohere", (cohere.CohereEmbedBody,), cohere.CohereEmbedAnswer,
        {"texts": _TEXTS, "input_type": "search_document", "embedding_types": ["float", "int8"]}, _COHERE),
    Row(cohere.OLD_PATH, "embeddings", "Vectors, as Cohere's first version", (cohere.CohereEmbedBody,),
        _any(cohere.CohereFloatsAnswer, cohere.CohereEmbedAnswer), {"texts": _TEXTS}, _COHERE),
    *(Row(path, "vLLM", "Scores of pairs of texts", (vllm.ScoreBody,), vllm.ScoreAnswer,
          {"text_1": "what is a panda?", "text_2": _PANDA}) for path in ("/score", "/v1/score")),
    Row("/classify", "vLLM", "Labels of texts; with `raw_scores`, in Infinity's form", (vllm.ClassifyBody,),
        _any(vllm.ClassifyAnswer, vllm.InfinityClassifyAnswer), {"input": _TEXTS}),
    Row("/pooling", "vLLM", "A vector, or one a token, or scores, for each text", (vllm.PoolingBody,),
        vllm.PoolingAnswer, {"input": _TEXTS, "task": "token_embed"}),
    Row(tokenize.TOKENIZE, "tokens", "Token ids of a text; with `inputs`, in TEI's form",
        (tokenize.TokenizeBody, tokens.TokensBody), _any(tokenize.TokenizeAnswer, _array(_array(tokens.SimpleToken))),
        {"prompt": "a cat sat on the mat"}, _BOTH),
    Row(tokenize.DETOKENIZE, "tokens", "The text of token ids", (tokenize.DetokenizeBody,), tokenize.DetokenizeAnswer,
        {"tokens": [101, 1037, 4937, 102]}),
    Row("/decode", "TEI", "The texts of token ids", (tokens.DecodeBody,), _array({"type": "string"}),
        {"ids": [101, 1037, 4937, 102]}, _TEI),
    Row("/embed", "TEI", "A vector for each text", (embed.EmbedBody,), _array(_NUMBERS), {"inputs": _TEXTS}, _TEI),
    Row("/embed_all", "TEI", "A vector for each token of each text", (embed.EmbedAllBody,), _array(_array(_NUMBERS)),
        {"inputs": _TEXTS}, _TEI),
    Row("/embed_sparse", "TEI", "Weights by token id for each text", (embed.EmbedAllBody,),
        _array(_array(embed.SparseValue)), {"inputs": _TEXTS}, _TEI),
    Row("/similarity", "TEI", "How alike one text is to others", (embed.SentenceSimilarityBody,), _NUMBERS,
        {"inputs": {"source_sentence": "a cat", "sentences": _TEXTS}}, _TEI),
    Row("/predict", "TEI", "Labels of a text, a pair, or a batch of either", (scores.PredictBody,), _PREDICTED,
        {"inputs": [["a text"], ["a question", "an answer"]]}, _TEI),
    Row("/", "TEI", "What the model does with `inputs` or `texts`; RTP-LLM's bodies too", _ROOT_BODIES,
        _any(_BY_MODEL, {"type": "object"}), {"inputs": _TEXTS}, _BOTH),
    Row("/invocations", "TEI", "What the model does with `inputs` or `texts`, for SageMaker", _ROOT_BODIES, _BY_MODEL,
        {"inputs": _TEXTS}, _TEI),
    Row("/vertex", "TEI", "Several bodies of the other routes, for Vertex AI", (routes.VertexBody,),
        routes.VertexAnswer, {"instances": [{"inputs": "a text"}]}, _TEI),
)  # fmt: skip


def types_of(value: Any) -> list[type]:
    """The body and answer types in a row's schema."""
    if isinstance(value, type):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [found for part in parts for found in types_of(part)]


def schema_of(value: Any, ref: Any) -> Any:
    """The schema with every type as what `ref` makes of it."""
    if isinstance(value, type):
        return ref(value)
    if isinstance(value, dict):
        return {key: schema_of(part, ref) for key, part in value.items()}
    return [schema_of(part, ref) for part in value] if isinstance(value, list) else value
