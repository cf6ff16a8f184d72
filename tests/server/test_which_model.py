"""Without a name, each route goes to the first model that can do what it asks, in whatever order the models stand.

docs/models.md has a row for each of ROUTES.
"""

import asyncio
import itertools
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtp_llm.core import Request, Response, TaskType
from rtp_llm.errors import UnsupportedTask
from rtp_llm.server import create_app
from rtp_llm.server.dispatch import DIALECTS
from tests.server.conftest import CONFIG
from tests.server.fake_engine import FakeEngine

TEXTS = ["a", "b"]
EMBED: dict[str, Any] = {"input": TEXTS}
PAIR = {"query": "q", "documents": TEXTS}
SIDES = {"left": ["a"], "right": ["b"]}
TASKS = {
    "ranker": (TaskType.RERANK, TaskType.CLASSIFY),
    "labels": (TaskType.CLASSIFY,),
    "tags": (TaskType.TOKEN_CLASSIFY,),
    "splade": (TaskType.SPARSE,),
    "dense": (TaskType.DENSE, TaskType.TOKENS),
    "m3": (TaskType.DENSE, TaskType.SPARSE, TaskType.COLBERT, TaskType.TOKENS),
}
M3_LAST = ("ranker", "labels", "tags", "splade", "dense", "m3")
READERS = set(TASKS) - {"ranker"}
# path, body, the models that may answer: the first of them in the server's order does.
ROUTES: list[tuple[str, dict[str, Any], set[str]]] = [
    ("/v1/embeddings", EMBED, {"dense", "m3"}),
    ("/embeddings", EMBED, {"dense", "m3"}),
    ("/v1/embeddings", {**EMBED, "output": ["sparse", "colbert"]}, {"m3"}),
    ("/v1/embeddings/dense", EMBED, {"dense", "m3"}),
    ("/v1/embeddings/sparse", EMBED, {"splade", "m3"}),
    ("/v1/embeddings/colbert", EMBED, {"m3"}),
    ("/v1/multi-vector", EMBED, {"m3"}),
    ("/v1/embeddings", {**EMBED, "return_multivector": True}, {"m3"}),
    ("/v1/embeddings/similarity", SIDES, {"dense", "m3"}),
    ("/v1/embeddings/similarity", {**SIDES, "kind": "dense"}, {"dense", "m3"}),
    ("/v1/embeddings/similarity", {**SIDES, "kind": "sparse"}, {"splade", "m3"}),
    ("/v1/embeddings/similarity", {**SIDES, "kind": "colbert"}, {"m3"}),
    ("/v1/embeddings/similarity", {**SIDES, "kind": "hybrid"}, {"m3"}),
    ("/v1/embeddings/similarity", {**SIDES, "kind": "hybrid", "weights": [1, 0, 1]}, {"m3"}),
    ("/v2/embed", {"texts": TEXTS}, {"dense", "m3"}),
    ("/v1/embed", {"texts": TEXTS}, {"dense", "m3"}),
    ("/rerank", PAIR, {"ranker"}),
    ("/v1/rerank", PAIR, {"ranker"}),
    ("/v2/rerank", PAIR, {"ranker"}),
    ("/v1/reranker", PAIR, {"ranker"}),
    ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}]}, {"ranker"}),
    ("/score", {"text_1": "q", "text_2": TEXTS}, {"ranker"}),
    ("/v1/score", {"text_1": "q", "text_2": TEXTS}, {"ranker"}),
    ("/v1/classifier", EMBED, {"labels"}),
    ("/v1/classifier", {**EMBED, "aggregation_strategy": "first"}, {"tags"}),
    ("/classify", EMBED, {"labels"}),
    ("/pooling", EMBED, {"dense", "m3"}),
    ("/pooling", {**EMBED, "task": "embed"}, {"dense", "m3"}),
    ("/pooling", {**EMBED, "task": "token_embed"}, {"m3"}),
    ("/pooling", {**EMBED, "task": "classify"}, {"labels"}),
    ("/pooling", {**EMBED, "task": "token_classify"}, {"tags"}),
    ("/embed", {"inputs": TEXTS}, {"dense", "m3"}),
    ("/embed_all", {"inputs": TEXTS}, {"dense", "m3"}),
    ("/embed_sparse", {"inputs": TEXTS}, {"splade", "m3"}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": TEXTS}}, {"dense", "m3"}),
    ("/predict", {"inputs": "a"}, {"labels"}),
    ("/predict", {"inputs": "a", "parameters": {"aggregation_strategy": "first"}}, {"tags"}),
    ("/rerank", {"query": "q", "texts": TEXTS}, {"ranker"}),
    ("/invocations", {"query": "q", "texts": TEXTS}, {"ranker"}),
    ("/invocations", {"inputs": "a"}, READERS),
    ("/vertex", {"instances": [{"inputs": "a"}]}, READERS),
    ("/api/embed", EMBED, {"dense", "m3"}),
    ("/api/embeddings", {"prompt": "a"}, {"dense", "m3"}),
    ("/vectors", {"text": "a"}, {"dense", "m3"}),
    ("/rerank", {**PAIR, "property": ""}, {"ranker"}),
    ("/", {"inputs": "a"}, READERS),
    ("/", {"inputs": {"source_sentence": "a", "sentences": TEXTS}}, {"dense", "m3"}),
    ("/", {"query": "q", "texts": TEXTS}, {"ranker"}),
    ("/", PAIR, {"ranker"}),
    ("/", SIDES, {"dense", "m3"}),
]
# What any model can tell is told by the first; `custom` needs a module.
OF_THE_FIRST = {"/tokenize", "/tokenizer/encode", "/detokenize", "/decode", "/api/show"}


class Asked(FakeEngine):
    """Answers what its info says that it can, and nothing else."""

    async def run(self, request: Request) -> Response:
        if not set(request.tasks) <= set(self.info().tasks):
            raise UnsupportedTask("the wrong one was asked")
        return await super().run(request)


def answered(
    order: tuple[str, ...], path: str, body: dict[str, Any], **headers: str
) -> tuple[httpx.Response, list[str]]:
    """The answer, and the models that were asked."""
    engines = [Asked(name=name, tasks=TASKS[name], labels=("no", "yes")) for name in order]

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(engines, CONFIG))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post(path, json=body, headers=headers)

    return asyncio.run(send()), [engine.info().name for engine in engines if engine.requests]


@pytest.mark.parametrize("order", [M3_LAST, M3_LAST[::-1]], ids=["m3 last", "m3 first"])
@pytest.mark.parametrize(("path", "body", "able"), ROUTES)
def test_the_first_that_can(order: tuple[str, ...], path: str, body: dict[str, Any], able: set[str]) -> None:
    answer, asked = answered(order, path, body)
    assert answer.status_code == 200, answer.text
    assert asked == [next(name for name in order if name in able)]


def test_a_reranker_is_a_classifier_where_there_is_no_other() -> None:
    for path in ("/classify", "/v1/classifier"):
        assert answered(("dense", "ranker"), path, EMBED)[1] == ["ranker"]
    assert answered(("dense", "ranker"), "/predict", {"inputs": "a"})[1] == ["ranker"]


def test_tokens_are_labelled_where_nothing_labels_texts() -> None:
    assert answered(("dense", "tags"), "/v1/classifier", EMBED)[1] == ["tags"]
    assert answered(("dense", "tags"), "/predict", {"inputs": "a"})[1] == ["tags"]
    answer, asked = answered(("dense", "tags"), "/classify", EMBED)
    assert answer.status_code == 400 and asked == []


def test_vectors_rank_where_there_is_no_reranker() -> None:
    assert answered(("labels", "dense"), "/rerank", PAIR)[1] == ["dense"]
    assert answered(("labels", "m3"), "/score", {"text_1": "q", "text_2": TEXTS})[1] == ["m3"]


def test_input_on_the_root_is_what_its_first_reader_does() -> None:
    for order in itertools.permutations(("ranker", "labels", "dense")):
        assert answered(order, "/", EMBED)[1] == [next(name for name in order if name != "ranker")]


def test_every_route_has_a_row_here_and_in_the_docs() -> None:
    shown = {path for path, _, _ in ROUTES} | OF_THE_FIRST | {"/v1/custom"}
    assert shown == set(DIALECTS)
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `/")]
    assert {path for row in rows for path in re.findall(r"`(/[\w/-]*)", row)} >= set(DIALECTS) | {"/info", "/meta"}


class Silent(Asked):
    """Has no chat template."""

    def chat(self, messages: Any, **options: Any) -> str:
        raise UnsupportedTask("this model has no chat template", param="messages")


def test_messages_go_to_the_first_with_a_template() -> None:
    engines = [Silent(name="silent"), Asked(name="talks")]

    async def send(*engines: Asked) -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(list(engines), CONFIG))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/v1/embeddings", json={"messages": [{"role": "user", "content": "a"}]})

    assert asyncio.run(send(*engines)).json()["model"] == "talks"
    refused = asyncio.run(send(Silent(name="silent"), Silent(name="other")))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "messages"
