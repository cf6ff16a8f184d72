"""Clients that have an environment of their own, `.venv-clients` (`make clients`), unchanged, against real servers.

Each is called by a script that prints what the client's own objects hold.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import __version__
from rtp_llm.config import ServerConfig
from rtp_llm.core import Request, Response
from rtp_llm.errors import NotReady, Overloaded
from tests.conftest import LABELS
from tests.real_server import ROOT
from tests.server.client_table import shows
from tests.server.conftest import Address, running_server
from tests.server.fake_engine import FakeEngine, vector_of
from tests.server.rtp_clients import Served

pytest.importorskip("torch")
pytestmark = pytest.mark.clients

APART = ROOT / ".venv-clients"
PYTHON, NODE = APART / "python" / "bin" / "python", APART / "node" / "node_modules"
TEXTS = ["so sunny outside", "the weather is lovely today ."]
QUERY, DOCUMENTS = "so sunny outside", ["the weather", "he drove to stadium", "lovely"]


def url(served: Served) -> str:
    return str(served.client.base_url).rstrip("/")


def called(command: list[str | Path], **given: Any) -> Any:
    """What the script prints. An environment that is not there is a failure, so that no client is skipped unseen."""
    if not Path(command[0]).exists():
        pytest.fail(f"{command[0]} is not there: make clients")
    told = {"texts": TEXTS, "query": QUERY, "documents": DOCUMENTS, **given}
    done = subprocess.run([*command, json.dumps(told)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def script(name: str) -> Path:
    return Path(__file__).with_name(name)


def node(name: str, address: Address) -> Any:
    """What a script of node prints of the server at this address."""
    program = shutil.which("node")
    assert program is not None, "node is not installed"
    assert NODE.is_dir(), f"{NODE} is not there: make clients"
    return called([program, script(name)], dense=address.url, node=f"{NODE.parent}/package.json")


def best(served: Served, count: int) -> list[list[Any]]:
    entries = served.model.rerank(QUERY, DOCUMENTS, activation="sigmoid")[:count]
    return [[entry.index, pytest.approx(entry.score, abs=1e-6)] for entry in entries]


def labels(served: Served) -> list[dict[str, Any]]:
    rows = served.model.classify(TEXTS).tolist()
    return [{LABELS[i]: pytest.approx(score, abs=1e-6) for i, score in enumerate(row)} for row in rows]


def same(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@shows("infinity_client", "embeddings, rerank, classify, models", "/embeddings, /rerank, /classify, /models")
def test_infinity(dense: Served, reranker: Served, classifier: Served) -> None:
    urls = {"dense": url(dense), "reranker": url(reranker), "classifier": url(classifier)}
    answer = called([PYTHON, script("call_infinity.py")], **urls)
    same(answer["vectors"], dense.model.embed(TEXTS))
    assert answer["tokens"] == 13
    assert answer["ranks"] == best(reranker, 2) and answer["labels"] == labels(classifier)
    kinds = [["embed"], ["rerank", "classify"], ["classify"]]
    idle = {"queue_absolute": 0, "results_pending": 0}
    assert answer["models"] == [["tiny", "infinity", words, idle] for words in kinds]


@shows("langchain-huggingface", "HuggingFaceEndpointEmbeddings", "/")
def test_langchain_hugging_face(dense: Served) -> None:
    answer = called([PYTHON, script("call_langchain.py")], dense=url(dense))
    expected = dense.model.embed(TEXTS, normalize=True)
    same(answer["vectors"], expected)
    same(answer["async"], expected)
    same(answer["query"], expected[0])


@shows("haystack-ai", "OpenAITextEmbedder, OpenAIDocumentEmbedder", "/v1/embeddings")
@shows("cohere-haystack", "CohereTextEmbedder, CohereDocumentEmbedder, CohereRanker", "/v2/embed, /v2/rerank")
@shows("ollama-haystack", "OllamaTextEmbedder, OllamaDocumentEmbedder", "/api/embed")
def test_haystack(dense: Served, reranker: Served) -> None:
    answer = called([PYTHON, script("call_haystack.py")], dense=url(dense), reranker=url(reranker))
    for name in ("openai", "cohere", "ollama"):
        expected = dense.model.embed(TEXTS, normalize=True if name == "ollama" else None)
        same(answer[name], expected)
        same(answer[f"{name}_text"], expected[0])
    assert answer["ranks"] == best(reranker, 2)


@shows("tei-client", "HttpClient.info, .embed, .embed_all, .classify, .rerank", "/info, /embed, /predict, /rerank, …")
def test_tei_over_http(dense: Served, reranker: Served, classifier: Served) -> None:
    urls = {"dense": url(dense), "reranker": url(reranker), "classifier": url(classifier)}
    check_tei(called([PYTHON, script("call_tei.py")], protocol="http", **urls), dense, reranker, classifier)


@shows("tei-client", "GrpcClient (its own stubs): the same calls", "tei.v1")
def test_tei_over_grpc(dense: Served, reranker: Served, classifier: Served) -> None:
    from contextlib import ExitStack

    from tests.server.grpc.conftest import Loop
    from tests.server.grpc.conftest import serving as serving_grpc

    loop, config = Loop(), ServerConfig(checkpoint_path="fake", host="127.0.0.1", served_model_name="tiny")
    served = {"dense": dense, "reranker": reranker, "classifier": classifier}
    try:
        with ExitStack() as stack:
            where = {
                name: stack.enter_context(serving_grpc(loop, one.model._engine, config)) for name, one in served.items()
            }
            answer = called([PYTHON, script("call_tei.py")], protocol="grpc", **where)
        check_tei({**answer, "model": "tiny"}, dense, reranker, classifier)
    finally:
        loop.close()


def check_tei(answer: Any, dense: Served, reranker: Served, classifier: Served) -> None:
    assert (answer["model"], answer["tokens"]) == ("tiny", [5, 8])
    same(answer["vectors"], dense.model.embed(TEXTS, normalize=True))
    assert answer["ranks"] == best(reranker, 3) and answer["labels"] == labels(classifier)


class Busy(FakeEngine):
    """Full for the first request, restarting for the second; then it answers."""

    async def run(self, request: Request) -> Response:
        self.error = [Overloaded("full", retry_after=1.5), NotReady("starting"), None][min(len(self.requests), 2)]
        return await super().run(request)


@shows("ollama (node)", "embed, embeddings, list, show, version", "/api/embed, /api/embeddings, /api/tags, …")
def test_ollama_node() -> None:
    engine = FakeEngine()
    with running_server(engine) as address:
        answer = node("call_ollama.mjs", address)
    np.testing.assert_array_equal(np.float32(answer["vectors"]), [vector_of(text) for text in TEXTS])
    np.testing.assert_array_equal(np.float32(answer["older"]), vector_of(TEXTS[0]))
    assert np.shape(answer["sliced"]) == (2, 4) and [r.params.normalize for r in engine.requests] == [True, True, False]
    assert answer["models"] == answer["running"] == ["fake/model:latest"]
    assert answer["shown"]["bert.embedding_length"] == 8 and answer["version"] == __version__
    assert answer["refused"]["status"] == 400 and "does not support /api/chat" in answer["refused"]["message"]


@shows(
    "openai (node)", "embeddings.create (default: base64; float), models.list; retries on 429 and 503", "/v1/embeddings"
)
def test_openai_node() -> None:
    engine = Busy()
    with running_server(engine) as address:
        answer = node("call_openai.mjs", address)
    expected = [vector_of(text) for text in TEXTS]
    np.testing.assert_array_equal(np.float32(answer["vectors"]), expected)
    np.testing.assert_array_equal(np.float32(answer["float"]), expected)
    assert np.shape(answer["sliced"]) == (2, 8) and answer["models"] == ["fake/model"]
    refused = answer["refused"]
    assert (refused["status"], refused["type"], refused["param"]) == (400, "invalid_request_error", "dimensions")
    # Retry-After: 2 seconds of the full one, 1 of the starting one; its own waits would be 0.5 and 1 at the most.
    assert len(engine.requests) == 5 and answer["seconds"] >= 3
