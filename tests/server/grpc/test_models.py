"""Tiny real checkpoints: what gRPC answers is what HTTP answers from the same engine, and both are the engine's."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.core import FloatArray, Params, Request, TaskType
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.loading import load_engine
from rtp_llm.server import create_app
from tests.server.grpc.conftest import Client, Loop, Stubs, connected, serving
from tests.tasks.checkpoints import save, save_m3
from tests.tasks.late import save as save_late

grpc: Any = pytest.importorskip("grpc")
TEXTS = ["the weather is lovely today .", "he drove to stadium", "so sunny outside ! a b c"]
PAIRS = [("the weather", text) for text in TEXTS]


class Served(NamedTuple):
    engine: Engine
    client: Client
    config: ServerConfig

    def post(self, path: str, body: dict[str, Any]) -> Any:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=create_app(self.engine, self.config))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.post(path, json=body)

        answer = asyncio.run(ask())
        assert answer.status_code == 200, answer.text
        return answer.json()

    def run(self, inputs: list[Any], task: TaskType, **params: Any) -> Any:
        return self.engine.run_sync(Request(inputs=inputs, tasks=(task,), params=Params(**params))).outputs[task]


@contextmanager
def served(folder: Path, loop: Loop, stubs: Stubs, config: ServerConfig, **options: Any) -> Iterator[Served]:
    config = replace(config, checkpoint_path=str(folder), backend="numpy", num_threads=1, **options)
    engine = load_engine(config, "tiny")
    with serving(loop, engine, config) as address, connected(address, stubs) as client:
        yield Served(engine, client, config)
    engine.close()


def test_embed(tiny_bert: Path, loop: Loop, stubs: Stubs, config: ServerConfig) -> None:
    with served(tiny_bert, loop, stubs, config) as one:
        request = stubs.messages.EmbedRequest
        answers = list(one.client.embed.EmbedStream(request(inputs=text) for text in TEXTS))
        vectors = np.array([answer.embeddings for answer in answers], np.float32)
        data = one.post("/v1/embeddings", {"input": TEXTS, "normalize": True})["data"]
        np.testing.assert_array_equal(vectors, np.array([item["embedding"] for item in data], np.float32))
        assert [one.client.embed.Embed(request(inputs=text)).embeddings for text in TEXTS] == [
            answer.embeddings for answer in answers
        ]
        raw = one.client.embed.Embed(request(inputs=TEXTS[0], normalize=False, dimensions=16)).embeddings
        expected: FloatArray = one.run(TEXTS[:1], TaskType.DENSE, normalize=False, dimensions=16)
        np.testing.assert_array_equal(np.float32(raw), expected[0])
        with pytest.raises(grpc.RpcError) as caught:
            one.client.embed.Embed(request(inputs="a", dimensions=0))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_truncation(tiny_bert: Path, loop: Loop, stubs: Stubs, config: ServerConfig) -> None:
    with served(tiny_bert, loop, stubs, config, max_seq_len=8) as one:
        request, text = stubs.messages.EmbedRequest, "a b c d e the weather is lovely today"
        with pytest.raises(grpc.RpcError) as caught:
            one.client.embed.Embed(request(inputs=text))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "the limit is 8" in caught.value.details()
        for number, side in enumerate(("right", "left")):
            answer = one.client.embed.Embed(request(inputs=text, truncate=True, truncation_direction=number))
            expected = one.run([text], TaskType.DENSE, truncation_side=side, normalize=True)[0]
            np.testing.assert_array_equal(np.float32(answer.embeddings), expected)
            assert answer.metadata.compute_tokens == 8


def test_sparse(tmp_path: Path, loop: Loop, stubs: Stubs, config: ServerConfig) -> None:
    save_m3(tmp_path)
    with served(tmp_path, loop, stubs, config) as one:
        answer = one.client.embed.EmbedSparse(stubs.messages.EmbedSparseRequest(inputs=TEXTS[0]))
        http = one.post("/v1/embeddings/sparse", {"input": TEXTS[0]})["data"][0]["embedding"]
        ours = {str(value.index): np.float32(value.value) for value in answer.sparse_embeddings}
        assert ours == {index: np.float32(weight) for index, weight in http.items()} and ours
        assert answer.metadata.compute_tokens == 8


def test_tokens(tiny_bert: Path, loop: Loop, stubs: Stubs, config: ServerConfig) -> None:
    with served(tiny_bert, loop, stubs, config, task_type="ALL_EMBEDDING") as one:
        answer = one.client.embed.EmbedAll(stubs.messages.EmbedAllRequest(inputs=TEXTS[0]))
        (rows,) = one.run(TEXTS[:1], TaskType.TOKENS, normalize=False)
        np.testing.assert_array_equal(
            np.array([token.embeddings for token in answer.token_embeddings], np.float32), rows
        )
        with pytest.raises(grpc.RpcError) as caught:
            one.client.rerank.Rerank(stubs.messages.RerankRequest(query="a", texts=["b"]))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_rerank(tmp_path: Path, loop: Loop, stubs: Stubs, config: ServerConfig) -> None:
    save(tmp_path, "BertForSequenceClassification", num_labels=1)
    with served(tmp_path, loop, stubs, config) as one:
        messages = stubs.messages
        texts = [*TEXTS, TEXTS[0]]
        for raw in (False, True):
            request = messages.RerankRequest(query="the weather", texts=texts, raw_scores=raw, return_text=True)
            ranks = one.client.rerank.Rerank(request).ranks
            body = {"query": "the weather", "documents": texts, "normalize": not raw, "sorted": False}
            http = [result["relevance_score"] for result in one.post("/v1/reranker", body)["results"]]
            assert {rank.index: np.float32(rank.score) for rank in ranks} == dict(enumerate(map(np.float32, http)))
            assert [rank.text for rank in ranks] == [texts[rank.index] for rank in ranks]
            assert [rank.score for rank in ranks] == sorted((rank.score for rank in ranks), reverse=True)
            order = [rank.index for rank in ranks]
            assert order.index(3) < order.index(0)  # equal scores
            pairs = (messages.RerankStreamRequest(query="the weather", text=text, raw_scores=raw) for text in texts)
            streamed = one.client.rerank.RerankStream(pairs)
            assert [(rank.index, rank.score) for rank in streamed.ranks] == [(rank.index, rank.score) for rank in ranks]
            assert not streamed.ranks[0].HasField("text") and streamed.metadata.compute_tokens > 4
        label = one.client.predict.PredictPair(messages.PredictPairRequest(inputs=["the weather", texts[0]]))
        assert [prediction.label for prediction in label.predictions] == ["LABEL_0"]
        with pytest.raises(grpc.RpcError) as caught:
            one.client.rerank.RerankStream(iter([]))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_rerank_by_vectors_of_tokens(tmp_path: Path, loop: Loop, stubs: Stubs, config: ServerConfig) -> None:
    with served(save_late(tmp_path), loop, stubs, config) as one:
        messages = stubs.messages
        for raw in (False, True):
            body = {"query": "the weather", "documents": TEXTS, "normalize": not raw, "sorted": False}
            expected = [result["relevance_score"] for result in one.post("/v1/reranker", body)["results"]]
            request = messages.RerankRequest(query="the weather", texts=TEXTS, raw_scores=raw)
            pairs = (messages.RerankStreamRequest(query="the weather", text=text, raw_scores=raw) for text in TEXTS)
            for answer in (one.client.rerank.Rerank(request), one.client.rerank.RerankStream(pairs)):
                scores = {rank.index: rank.score for rank in answer.ranks}
                np.testing.assert_allclose([scores[place] for place in range(len(TEXTS))], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_predict(kind: str, tmp_path: Path, loop: Loop, stubs: Stubs, config: ServerConfig) -> None:
    save(tmp_path, "BertForSequenceClassification", num_labels=3, problem_type=kind)
    with served(tmp_path, loop, stubs, config) as one:
        messages = stubs.messages
        body = {"input": [TEXTS[0], PAIRS[0]], "labels": True}
        text, pair = (
            {label: np.float32(score) for label, score in labels["scores"].items()}
            for labels in one.post("/v1/classifier", body)["labels"]
        )
        answer = one.client.predict.Predict(messages.PredictRequest(inputs=TEXTS[0]))
        assert {value.label: np.float32(value.score) for value in answer.predictions} == text
        scores = [value.score for value in answer.predictions]
        assert scores == sorted(scores, reverse=True)
        answer = one.client.predict.PredictPair(messages.PredictPairRequest(inputs=PAIRS[0]))
        assert {value.label: np.float32(value.score) for value in answer.predictions} == pair
        (raw,) = one.client.predict.PredictStream(iter([messages.PredictRequest(inputs=TEXTS[0], raw_scores=True)]))
        logits = one.run(TEXTS[:1], TaskType.CLASSIFY, activation="none")[0]
        assert sorted(value.score for value in raw.predictions) == sorted(logits.tolist())


def test_tokenize(tiny_bert: Path, loop: Loop, stubs: Stubs, config: ServerConfig) -> None:
    with served(tiny_bert, loop, stubs, config) as one:
        messages = stubs.messages
        tokens = one.client.tokenize.Tokenize(messages.EncodeRequest(inputs="so é", add_special_tokens=True)).tokens
        ids = [token.id for token in tokens]
        assert ids == one.post("/tokenize", {"prompt": "so é"})["token_ids"]
        assert [(token.text, token.start, token.stop) for token in tokens[1:-1]] == [("so", 0, 2), ("é", 3, 5)]
        assert one.client.tokenize.Decode(messages.DecodeRequest(ids=ids[:2])).text == "[CLS] so"
        with pytest.raises(grpc.RpcError) as caught:
            one.client.tokenize.Decode(messages.DecodeRequest(ids=[100_000]))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
