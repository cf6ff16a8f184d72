"""The official clients, unchanged, against a real server."""

import asyncio
import base64
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from rtp_llm.errors import NotReady, Overloaded
from tests.server.client_table import shows
from tests.server.conftest import Address, running_server
from tests.server.fake_engine import DIMENSION, FakeEngine, vector_of

openai = pytest.importorskip("openai", reason="the openai package is not installed")


@pytest.fixture
def sdk(address: Address, engine: FakeEngine) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@shows("openai", "OpenAI.embeddings.create (float, base64, default)", "/v1/embeddings")
@pytest.mark.parametrize("encoding_format", ["float", "base64", None])
def test_openai(sdk: Any, encoding_format: str | None) -> None:
    form = {"encoding_format": encoding_format} if encoding_format else {}
    answer = sdk.embeddings.create(model="any", input=["one", "two"], **form)
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.usage.prompt_tokens, answer.model) == (6, "fake/model")
    for item, text in zip(answer.data, ["one", "two"], strict=True):
        vector = item.embedding
        if isinstance(vector, str):
            vector = struct.unpack(f"<{DIMENSION}f", base64.b64decode(vector))
        np.testing.assert_array_equal(np.float32(vector), vector_of(text))


def test_openai_token_ids_and_dimensions(sdk: Any, engine: FakeEngine) -> None:
    answer = sdk.embeddings.create(model="any", input=[[1, 2], [3]], dimensions=4, user="me")
    assert [len(item.embedding) for item in answer.data] == [4, 4]
    assert list(engine.requests[0].inputs) == [[1, 2], [3]]


def test_openai_errors(sdk: Any, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError, match="not between 1 and 8") as caught:
        sdk.embeddings.create(model="any", input="a", dimensions=99)
    assert (caught.value.param, caught.value.type) == ("dimensions", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.models.retrieve("other")
    assert missing.value.code == "model_not_found"


@shows("openai", "AzureOpenAI.embeddings.create", "/openai/deployments/…/embeddings")
def test_azure() -> None:
    """Its path names the deployment that answers, whatever model stands in the body; a lone model is the deployment."""
    with running_server([FakeEngine(name="one"), FakeEngine(name="two")]) as address:
        for deployment, model in (("two", "one"), (None, "two")):
            own = {"azure_deployment": deployment, "api_key": "unused", "api_version": "2024-10-21", "max_retries": 0}
            with openai.AzureOpenAI(azure_endpoint=address.url, **own) as sdk:
                answer = sdk.embeddings.create(model=model, input="a")
            assert answer.model == "two"
            np.testing.assert_array_equal(np.float32(answer.data[0].embedding), vector_of("a"))


@shows("openai", "AsyncOpenAI.embeddings.create", "/v1/embeddings")
def test_openai_async(address: Address, engine: FakeEngine) -> None:
    async def embed() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{address.url}/v1", api_key="unused", max_retries=0) as client:
            calls = [client.embeddings.create(model="any", input=text) for text in ("one", "two")]
            return [answer.data[0].embedding for answer in await asyncio.gather(*calls)]

    np.testing.assert_array_equal(np.array(asyncio.run(embed()), np.float32), [vector_of("one"), vector_of("two")])


class Waits:
    """Stands for time.sleep where a client waits between two tries, after which the engine is no longer busy.

    Other threads, the log's for one, sleep as they did.
    """

    def __init__(self, engine: FakeEngine, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine, self.seconds = engine, [0.0][:0]
        self.thread, self.sleep_of_others = threading.current_thread(), time.sleep
        engine.error = error
        monkeypatch.setattr("time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        if threading.current_thread() is not self.thread:
            return self.sleep_of_others(seconds)
        self.seconds.append(seconds)
        self.engine.error = None


REFUSALS = [(Overloaded("full", retry_after=6.5), 7.0), (NotReady("starting"), 1.0)]


@shows("openai", "OpenAI: retries on 429 and 503, after Retry-After", "/v1/embeddings")
@pytest.mark.parametrize(("error", "seconds"), REFUSALS)
def test_openai_retries(
    address: Address, engine: FakeEngine, error: Exception, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits(engine, error, monkeypatch)
    with openai.OpenAI(base_url=f"{address.url}/v1", api_key="unused") as client:
        assert client.embeddings.create(model="any", input="one").data
    assert waits.seconds == [seconds] and len(engine.requests) == 2


@shows("cohere", "ClientV2: retries on 429 and 503, after Retry-After", "/v2/embed")
@pytest.mark.parametrize(("error", "seconds"), REFUSALS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_cohere_retries(
    address: Address, engine: FakeEngine, error: Exception, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohere = pytest.importorskip("cohere", reason="cohere is not installed")
    waits = Waits(engine, error, monkeypatch)
    with httpx.Client() as http:  # which its own leaves open
        client = cohere.ClientV2(api_key="unused", base_url=address.url, httpx_client=http)
        assert client.embed(texts=["one"], model="m", input_type="search_query", embedding_types=["float"]).embeddings
    assert waits.seconds == [pytest.approx(seconds, rel=0.25)] and len(engine.requests) == 2


@shows("openai", "OpenAI.models.list, .retrieve", "/v1/models")
def test_openai_models(sdk: Any) -> None:
    assert [model.id for model in sdk.models.list()] == ["fake/model"]
    assert sdk.models.retrieve("fake/model").owned_by == "rtp-llm"


@shows("langchain-openai", "OpenAIEmbeddings(check_embedding_ctx_length=False)", "/v1/embeddings")
def test_langchain_with_texts(address: Address, engine: FakeEngine) -> None:
    embeddings = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed").OpenAIEmbeddings
    client = embeddings(
        model="any", base_url=f"{address.url}/v1", api_key="unused", check_embedding_ctx_length=False, max_retries=0
    )
    vectors = client.embed_documents(["one", "two"])
    np.testing.assert_array_equal(np.float32(vectors), [vector_of("one"), vector_of("two")])
    np.testing.assert_array_equal(np.float32(client.embed_query("three")), vector_of("three"))
    assert list(engine.requests[-1].inputs) == ["three"]


def test_langchain_default_sends_foreign_ids(
    address: Address, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed").OpenAIEmbeddings

    class Encoding:
        """Stands for tiktoken's cl100k_base, which is downloaded: ids far over the served model's vocabulary."""

        def encode_ordinary(self, text: str) -> list[int]:
            return [9906 + len(word) for word in text.split()]

    monkeypatch.setattr("tiktoken.encoding_for_model", lambda name: Encoding())
    client = embeddings(model="any", base_url=f"{address.url}/v1", api_key="unused", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embed_documents(["two words"])
    assert not engine.requests


@shows("llama-index-embeddings-openai", "OpenAIEmbedding", "/v1/embeddings")
@shows("llama-index-embeddings-openai-like", "OpenAILikeEmbedding", "/v1/embeddings")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:llama_index")
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.parametrize(
    ("module", "name", "model_field"),
    [("openai", "OpenAIEmbedding", "model"), ("openai_like", "OpenAILikeEmbedding", "model_name")],
)
def test_llama_index(address: Address, engine: FakeEngine, module: str, name: str, model_field: str) -> None:
    package = pytest.importorskip(f"llama_index.embeddings.{module}", reason="llama-index is not installed")
    model = {"model": "text-embedding-3-small", "model_name": "any"}[model_field]
    client = getattr(package, name)(
        **{model_field: model}, api_base=f"{address.url}/v1", api_key="unused", max_retries=0
    )
    vectors = client.get_text_embedding_batch(["one", "two\nlines"])
    np.testing.assert_array_equal(np.float32(vectors[0]), vector_of("one"))
    assert list(engine.requests[0].inputs) == ["one", "two lines"]
    np.testing.assert_array_equal(np.float32(client.get_query_embedding("q")), vector_of("q"))
