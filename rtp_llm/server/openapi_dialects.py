"""The POST routes of all dialects, as rows for the OpenAPI description; their examples are sent by the tests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rtp_llm.server import (
    classifier,
    cohere,
    custom,
    embeddings,
    nvidia,
    ollama,
    ollama_models,
    openai,
    rerank,
    reranker,
    score,
    similarity,
    tokenize,
    vllm,
    weaviate,
)
from rtp_llm.server.entities import FoundEntity
from rtp_llm.server.errors import ErrorForm, openai_form, plain_form, shared_form
from rtp_llm.server.tei import embed, frame, scores, tokens, vertex

_TEXTS = ["a cat sat on the mat", "a dog lay on the rug"]
_PANDA = ["hi", "The giant panda is a bear endemic to China."]
_QUERY = "what is a panda?"
_NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "number"}}
_BINARY = ("application/octet-stream", "application/x-npy")
_USAGE = {"prompt_tokens": 16, "total_tokens": 16}

_OPENAI, _SHARED, _TEI, _COHERE = (openai_form,), (shared_form,), (frame.error_form,), (cohere.error_form,)
_PLAIN = (plain_form,)


@dataclass(frozen=True, slots=True)
class Row:
    """One POST under all of its names.

    bodies    told apart by their keys
    answer    a type, or a schema with types in it
    examples  bodies, by what they show
    answered  what the first of them is answered with
    forms     how failures are told, of the path first
    binary    types of answers that are no JSON
    """

    paths: tuple[str, ...]
    tag: str
    summary: str
    bodies: tuple[type, ...]
    answer: Any
    examples: Mapping[str, dict[str, Any]]
    answered: Any
    forms: tuple[ErrorForm, ...] = field(default=_OPENAI)
    binary: tuple[str, ...] = ()


def _array(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _any(*items: Any) -> dict[str, Any]:
    return {"anyOf": list(items)}


def _item(kind: str, embedding: Any) -> dict[str, Any]:
    return {
        "object": "list", "data": [{"object": kind, "index": 0, "embedding": embedding}], "model": "bge-m3",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }  # fmt: skip


def _listed(prefix: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"{prefix}-9f6a", "object": "list", "created": 1700000000, "model": "all-MiniLM-L6-v2", "data": data,
        "usage": _USAGE,
    }  # fmt: skip


def _embeddings() -> list[Row]:
    body, kinds = (openai.EmbeddingsBody,), _any(openai.EmbeddingsAnswer, embeddings.KindsAnswer)
    any_kind: dict[str, dict[str, Any]] = {
        "texts": {"input": _TEXTS, "encoding_format": "float"},
        "fewer dimensions, as base64": {"input": "a text", "dimensions": 16, "encoding_format": "base64"},
        "token ids": {"input": [[2, 5, 3], [2, 6, 7, 3]]},
        "several kinds at once": {"input": ["a text"], "output": ["dense", "sparse", "colbert"]},
        "chat messages": {"messages": [{"role": "user", "content": "a text"}]},
        "chunks of one text (Jina)": {"input": ["Berlin is a city.", "It has many parks."], "late_chunking": True},
        "bytes instead of floats (Voyage)": {"input": _TEXTS, "input_type": "document", "output_dtype": "int8"},
    }
    one: dict[str, dict[str, Any]] = {"a text": {"input": "a cat sat on the mat"}}
    floats: Any = {
        "object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.0132, -0.0871]},
                                   {"object": "embedding", "index": 1, "embedding": [0.0519, -0.0204]}],
        "model": "all-MiniLM-L6-v2", "usage": _USAGE,
    }  # fmt: skip
    return [
        Row(("/v1/embeddings", "/embeddings"), "embeddings", "A vector, or other embeddings, for each text", body,
            kinds, any_kind, floats, _SHARED, _BINARY),
        Row(("/v1/embeddings/dense",), "embeddings", "A vector for each text", body, kinds, one,
            _item("embedding", [0.0132, -0.0871]), _SHARED, _BINARY),
        Row(("/v1/embeddings/sparse",), "embeddings", "Lexical weights for each text", body, kinds,
            {**one, "words instead of ids": {"input": "a text", "return_decoded": True, "sparse_format": "arrays"}},
            _item("sparse_embedding", {"3525": 0.21}), _SHARED),
        Row(("/v1/embeddings/colbert",), "embeddings", "A vector for each token of each text", body, kinds, one,
            _item("colbert_embedding", [[0.02, 0.11], [0.07, -0.3]]), _SHARED),
        Row((similarity.PATH,), "embeddings", "How alike texts are", (similarity.SimilarityBody,),
            similarity.SimilarityAnswer,
            {"dense": {"left": ["a cat"], "right": ["a kitten", "a car"]},
             "all kinds": {"left": ["a cat"], "right": ["a dog"], "kind": "hybrid", "weights": [1, 0.3, 1]}},
            {"model": "bge-m3", "similarity": [[0.81, 0.12]], "left_response": None, "right_response": None}),
        Row((cohere.PATH,), "embeddings", "Vectors by type, as Cohere", (cohere.CohereEmbedBody,),
            cohere.CohereEmbedAnswer,
            {"texts": {"texts": _TEXTS, "input_type": "search_document", "embedding_types": ["float", "int8"]},
             "parts": {"inputs": [{"content": [{"type": "text", "text": "a text"}]}]}},
            {"id": "9f6a", "embeddings": {"float": [[0.01, -0.08]], "int8": [[13, -87]]}, "texts": ["a text"],
             "meta": {"api_version": {"version": "2"}}, "response_type": "embeddings_by_type"}, _COHERE),
        Row((cohere.OLD_PATH,), "embeddings", "Vectors, as Cohere's first version", (cohere.CohereEmbedBody,),
            _any(cohere.CohereFloatsAnswer, cohere.CohereEmbedAnswer), {"texts": {"texts": _TEXTS}},
            {"id": "9f6a", "embeddings": [[0.01, -0.08]], "texts": ["a text"],
             "meta": {"api_version": {"version": "1"}}, "response_type": "embeddings_floats"}, _COHERE),
    ]  # fmt: skip


def _scores() -> list[Row]:
    pair = {"query": _QUERY, "documents": _PANDA}
    ranked = {
        "id": "rerank-9f6a", "object": "rerank", "model": "bge-reranker-base",
        "results": [{"index": 1, "relevance_score": 0.997}], "usage": {"prompt_tokens": 28, "total_tokens": 28},
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }  # fmt: skip
    cohere_pair = {"the best": {**pair, "top_n": 1, "return_documents": True}}
    return [
        Row(("/rerank",), "rerank", "Score documents for a query; with `texts` as TEI, with `property` as Weaviate",
            (rerank.RerankBody, scores.TextsBody, weaviate.PropertyRerankBody),
            _any(rerank.RerankAnswer, _array(scores.Rank), weaviate.PropertyRerankAnswer),
            {"documents": pair, "texts (TEI)": {"query": _QUERY, "texts": _PANDA},
             "top_k (Voyage)": {**pair, "top_k": 1}, "property (Weaviate)": {**pair, "property": ""}},
            ranked, (shared_form, frame.error_form, plain_form)),
        Row(("/v1/rerank",), "rerank", "Score documents for a query, as Jina, Voyage and vLLM", (rerank.RerankBody,),
            rerank.RerankAnswer, cohere_pair, ranked, _SHARED),
        Row(("/v2/rerank",), "rerank", "Score documents for a query, as Cohere", (rerank.RerankBody,),
            rerank.RerankAnswer, cohere_pair, ranked, _COHERE),
        Row((reranker.PATH,), "scores", "Score documents for a query, as RTP-LLM", (reranker.RerankerBody,),
            reranker.RerankerAnswer, {"documents": pair, "in their order": {**pair, "sorted": False, "top_k": 1}},
            {"results": [{"index": 1, "document": _PANDA[1], "relevance_score": 5.77},
                         {"index": 0, "document": "hi", "relevance_score": -5.61}], "total_tokens": 28}),
        Row((classifier.PATH,), "scores", "Classify texts and pairs, or find entities in texts",
            (classifier.ClassifierBody,), _any(classifier.ClassifierAnswer, classifier.EntitiesAnswer),
            {"texts and pairs": {"input": ["a text", ["a question", "an answer"]]},
             "labels": {"input": "a text", "labels": True},
             "entities": {"input": ["Sarah lives in London."], "aggregation_strategy": "first"}},
            {"object": "list", "score": [[1.2, -0.4], [0.1, 0.3]]}),
        Row((custom.PATH,), "custom", "What the operator's own module makes of the inputs", (custom.CustomBody,),
            custom.CustomAnswer, {"inputs": {"input": ["a query", "a document", "another"], "extra": {"top_k": 1}}},
            {"object": "custom", "data": {"indices": [0], "scores": [0.71]}, "model": "all-MiniLM-L6-v2",
             "usage": _USAGE}),
    ]  # fmt: skip


def _jina_and_nvidia() -> list[Row]:
    passages = {"query": {"text": _QUERY}, "passages": [{"text": text} for text in _PANDA], "truncate": "END"}
    vectors = {"object": "embeddings", "index": 0, "embeddings": [[0.02, 0.11], [0.07, -0.3]]}
    return [
        Row((embeddings.MULTI_VECTOR,), "embeddings", "A vector for each token of each text, as Jina",
            (openai.EmbeddingsBody,), embeddings.KindsAnswer,
            {"a query": {"input": ["a text"], "input_type": "query"}},
            {"object": "list", "data": [vectors], "model": "colbertv2.0", "usage": _USAGE}, _SHARED),
        Row((nvidia.PATH,), "rerank", "Score passages for a query, as NVIDIA NIM", (nvidia.RankingBody,),
            nvidia.RankingAnswer, {"passages": passages},
            {"rankings": [{"index": 1, "logit": 5.77}, {"index": 0, "logit": -5.61}], "usage": _USAGE}, _SHARED),
    ]  # fmt: skip


def _tokens() -> list[Row]:
    prompt: dict[str, Any] = {"prompt": "a cat sat on the mat"}
    ids = [101, 1037, 4937, 102]
    return [
        Row((tokenize.TOKENIZE,), "tokens", "Token ids of a text; with `inputs`, in TEI's form",
            (tokenize.TokenizeBody, tokenize.TokenizeChatBody, tokens.TokensBody),
            _any(tokenize.TokenizeAnswer, _array(_array(tokens.SimpleToken))),
            {"prompt": prompt, "tokens' names": {**prompt, "return_token_strs": True},
             "chat messages (vLLM)": {"messages": [{"role": "user", "content": "a cat"}]},
             "inputs (TEI)": {"inputs": _TEXTS}},
            {"token_ids": ids, "tokens": ids, "count": 4, "max_model_len": 256, "token_strs": None},
            (openai_form, frame.error_form)),
        Row((tokenize.ENCODE,), "tokens", "Token ids and tokens of a text", (tokenize.TokenizeBody,),
            tokenize.EncodeAnswer, {"prompt": prompt, "offsets": {**prompt, "return_offsets_mapping": True}},
            {"token_ids": ids, "tokens": ["[CLS]", "a", "cat", "[SEP]"], "error": ""}),
        Row((tokenize.DETOKENIZE,), "tokens", "The text of token ids", (tokenize.DetokenizeBody,),
            tokenize.DetokenizeAnswer, {"ids": {"tokens": ids}}, {"prompt": "[CLS] a cat [SEP]"}),
    ]  # fmt: skip


def _vllm() -> list[Row]:
    labelled = [{"index": 0, "label": "joy", "probs": [0.9, 0.1], "num_classes": 2}]
    return [
        Row(score.PATHS, "vLLM", "Scores of pairs of texts", (score.ScoreBody,), score.ScoreAnswer,
            {"one with each": {"text_1": _QUERY, "text_2": _PANDA}, "pairs": {"text_1": _TEXTS, "text_2": _PANDA}},
            _listed("score", [{"index": 0, "object": "score", "score": 0.04}])),
        Row(("/classify",), "vLLM", "Labels of texts; with `raw_scores`, in Infinity's form", (vllm.ClassifyBody,),
            _any(vllm.ClassifyAnswer, vllm.InfinityClassifyAnswer),
            {"texts": {"input": _TEXTS}, "as Infinity": {"input": _TEXTS, "raw_scores": False}},
            _listed("classify", labelled)),
        Row(("/pooling",), "vLLM", "A vector, or one a token, or scores, for each text", (vllm.PoolingBody,),
            vllm.PoolingAnswer, {"a vector a token": {"input": _TEXTS, "task": "token_embed"},
                                 "a vector": {"input": _TEXTS, "task": "embed"},
                                 "labels' scores of each token": {"input": _TEXTS, "task": "token_classify"}},
            _listed("pool", [{"index": 0, "object": "pooling", "data": [[0.1, 0.2], [0.3, -0.1]]}]),
            binary=_BINARY[:1]),
    ]  # fmt: skip


def _tei() -> list[Row]:
    predictions, entities = _array(scores.Prediction), _array(FoundEntity)
    predicted = _any(predictions, _array(predictions), entities, _array(entities))
    by_model = _any(
        _array(_any(_NUMBERS, {"type": "number"}, _array(embed.SparseValue))), predicted, _array(scores.Rank)
    )
    bodies = (embed.EmbedBody, embed.SentenceSimilarityBody, scores.PredictBody, scores.TextsBody)
    sides = {"inputs": {"source_sentence": "a cat", "sentences": _TEXTS}}
    by_inputs: dict[str, dict[str, Any]] = {
        "texts": {"inputs": _TEXTS},
        "a similarity": sides,
        "a rerank": {"query": _QUERY, "texts": _PANDA},
    }
    rtp: dict[str, dict[str, Any]] = {
        "RTP-LLM's embeddings": {"input": _TEXTS}, "RTP-LLM's reranker": {"query": _QUERY, "documents": _PANDA},
        "RTP-LLM's similarity": {"left": ["a cat"], "right": ["a dog"]},
    }  # fmt: skip
    vectors, inputs = [[0.0132, -0.0871], [0.0519, -0.0204]], {"texts": {"inputs": _TEXTS}}
    return [
        Row(("/embed",), "TEI", "A vector for each text", (embed.EmbedBody,), _array(_NUMBERS),
            {**inputs, "as they come": {"inputs": "a text", "normalize": False, "truncate": False}}, vectors, _TEI,
            _BINARY),
        Row(("/embed_all",), "TEI", "A vector for each token of each text", (embed.EmbedAllBody,),
            _array(_array(_NUMBERS)), inputs, [[[0.1, 0.2], [0.3, -0.1]]], _TEI),
        Row(("/embed_sparse",), "TEI", "Weights by token id for each text", (embed.EmbedAllBody,),
            _array(_array(embed.SparseValue)), inputs, [[{"index": 3525, "value": 0.21}]], _TEI),
        Row(("/similarity",), "TEI", "How alike one text is to others", (embed.SentenceSimilarityBody,), _NUMBERS,
            {"sentences": sides}, [0.81, 0.12], _TEI),
        Row(("/predict",), "TEI", "Labels of a text, a pair, or a batch of either; entities; or labels of one's own",
            (scores.PredictBody,), predicted,
            {"a batch": {"inputs": [["a text"], ["a question", "an answer"]]}, "a text": {"inputs": "a text"},
             "entities": {"inputs": "Sarah lives in London.", "parameters": {"aggregation_strategy": "first"}}},
            [[{"score": 0.9, "label": "joy"}]], _TEI),
        Row(("/decode",), "TEI", "The texts of token ids", (tokens.DecodeBody,), _array({"type": "string"}),
            {"ids": {"ids": [101, 1037, 4937, 102]}}, ["a cat"], _TEI),
        Row(("/", "/invocations"), "TEI",
            "What the model does with `inputs` or `texts`; RTP-LLM's bodies too. /invocations is SageMaker's",
            (*bodies, openai.EmbeddingsBody, reranker.RerankerBody, similarity.SimilarityBody),
            _any(by_model, {"type": "object"}), by_inputs | rtp, vectors, (frame.error_form, openai_form, shared_form)),
        Row(("/vertex",), "TEI", "Several such bodies, for Vertex AI", (vertex.VertexBody,),
            vertex.VertexAnswer, {"a text": {"instances": [{"inputs": "a text"}]}}, {"predictions": [vectors[:1]]},
            _TEI),
    ]  # fmt: skip


def _ollama_and_weaviate() -> list[Row]:
    vector = [0.0132, -0.0871]
    details = {"family": "bert", "families": ["bert"], "quantization_level": "F32"}
    shown = {
        "details": details, "capabilities": ["embedding"], "modified_at": "2026-11-30T18:30:00+00:00",
        "model_info": {"general.architecture": "bert", "general.basename": "all-MiniLM-L6-v2",
                       "bert.context_length": 256, "bert.embedding_length": 384},
    }  # fmt: skip
    return [
        Row((ollama.PATH,), "Ollama", "A vector for each text, as Ollama", (ollama.OllamaEmbedBody,),
            ollama.OllamaEmbedAnswer,
            {"texts": {"model": "all-MiniLM-L6-v2:latest", "input": _TEXTS},
             "fewer dimensions and tokens": {"input": "a text", "dimensions": 16, "options": {"num_ctx": 64}}},
            {"model": "all-MiniLM-L6-v2", "embeddings": [vector], "total_duration": 4143917, "load_duration": 0,
             "prompt_eval_count": 8}, _PLAIN),
        Row((ollama.OLD_PATH,), "Ollama", "A vector as the model pools it, as Ollama's older clients",
            (ollama.OllamaEmbeddingsBody,), ollama.OllamaEmbeddingsAnswer, {"a text": {"prompt": "a text"}},
            {"embedding": [0.567, -0.291]}, _PLAIN),
        Row((ollama_models.SHOW_PATH,), "Ollama", "A model, as Ollama", (ollama_models.ShowBody,),
            ollama_models.ShowAnswer, {"a model": {"model": "all-MiniLM-L6-v2"}}, shown, _PLAIN),
        Row((weaviate.VECTORS_PATH,), "Weaviate", "The vector of a text, or those of several", (weaviate.VectorsBody,),
            _any(weaviate.VectorAnswer, weaviate.VectorsAnswer),
            {"a text": {"text": "a text", "config": {"pooling_strategy": "masked_mean", "task_type": "passage"}},
             "several": {"texts": _TEXTS}}, {"text": "a text", "vector": vector, "dim": 2}, _PLAIN),
    ]  # fmt: skip


ROWS = (*_embeddings(), *_scores(), *_jina_and_nvidia(), *_tokens(), *_vllm(), *_tei(), *_ollama_and_weaviate())


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
