"""The clients of other servers, unchanged, against a real server over tiny random checkpoints."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.server import client_table
from tests.server.client_table import shows
from tests.server.rtp_clients import Served, serving
from tests.tasks.checkpoints import save

pytest.importorskip("torch")

TEXTS = ["so sunny outside", "the weather is lovely today ."]
QUERY, DOCUMENTS = "so sunny outside", ["the weather", "he drove to stadium", "lovely"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore:.*unclosed|.*socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def no_socket_outlives_this_module() -> Iterator[None]:
    """What clients leave open the collector closes, with a warning that is passed over here and not in later tests."""
    yield
    gc.collect()


def url(served: Served) -> str:
    return str(served.client.base_url).rstrip("/")


def vectors(served: Served, **params: Any) -> Any:
    return served.model.embed(TEXTS, **params)


def best(served: Served, count: int = 3) -> list[tuple[int, Any]]:
    """Places and scores, as every client should show them."""
    entries = served.model.rerank(QUERY, DOCUMENTS, activation="sigmoid")[:count]
    return [(entry.index, pytest.approx(entry.score, abs=1e-6)) for entry in entries]


def client(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


@shows("cohere", "ClientV2.embed", "/v2/embed")
def test_cohere_embed(dense: Served) -> None:
    sdk = client("cohere").ClientV2(api_key="unused", base_url=url(dense))
    answer = sdk.embed(texts=TEXTS, model="m", input_type="search_query", embedding_types=["float", "ubinary"])
    np.testing.assert_allclose(answer.embeddings.float_, vectors(dense), atol=1e-6)
    np.testing.assert_array_equal(answer.embeddings.ubinary, np.packbits(vectors(dense) > 0, axis=-1))
    assert answer.meta.billed_units.input_tokens == 13


@shows("cohere", "ClientV2.rerank", "/v2/rerank")
def test_cohere_rerank(reranker: Served) -> None:
    sdk = client("cohere").ClientV2(api_key="unused", base_url=url(reranker))
    answer = sdk.rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert [(result.index, result.relevance_score) for result in answer.results] == best(reranker, 2)


@shows("cohere", "Client.embed, Client.rerank", "/v1/embed, /v1/rerank")
def test_cohere_first_version(dense: Served, reranker: Served) -> None:
    cohere = client("cohere")
    answer = cohere.Client(api_key="unused", base_url=url(dense)).embed(texts=TEXTS, model="m")
    np.testing.assert_allclose(answer.embeddings, vectors(dense), atol=1e-6)
    documents = [{"text": text} for text in DOCUMENTS]
    sdk = cohere.Client(api_key="unused", base_url=url(reranker))
    results = sdk.rerank(model="m", query=QUERY, documents=documents, return_documents=True).results
    assert [(result.index, result.relevance_score) for result in results] == best(reranker)
    assert [result.document.text for result in results] == [DOCUMENTS[result.index] for result in results]


def test_cohere_errors(dense: Served) -> None:
    cohere = client("cohere")
    with pytest.raises(cohere.BadRequestError) as caught:
        cohere.ClientV2(api_key="unused", base_url=url(dense)).embed(texts=TEXTS, model="m", input_type="poem")
    assert "'poem' is not one of" in caught.value.body["message"]


@shows("voyageai", "Client.embed", "/v1/embeddings")
def test_voyage_embed(dense: Served) -> None:
    sdk = client("voyageai").Client(api_key="unused", base_url=f"{url(dense)}/v1", max_retries=0)
    answer = sdk.embed(TEXTS, model="m", input_type="document", output_dimension=16)
    np.testing.assert_allclose(answer.embeddings, vectors(dense, dimensions=16), atol=1e-6)
    assert answer.total_tokens == 13
    packed = sdk.embed(TEXTS, model="m", output_dtype="binary").embeddings
    np.testing.assert_array_equal(packed, np.packbits(vectors(dense) > 0, axis=-1).astype(int) - 128)


@shows("voyageai", "Client.rerank", "/v1/rerank")
def test_voyage_rerank(reranker: Served) -> None:
    sdk = client("voyageai").Client(api_key="unused", base_url=f"{url(reranker)}/v1", max_retries=0)
    for top_k, count in ((None, 3), (2, 2)):
        answer = sdk.rerank(QUERY, DOCUMENTS, model="m", top_k=top_k)
        assert [(result.index, result.relevance_score) for result in answer.results] == best(reranker, count)
        assert answer.results[0].document == DOCUMENTS[answer.results[0].index]


def test_voyage_errors(dense: Served) -> None:
    sdk = client("voyageai").Client(api_key="unused", base_url=f"{url(dense)}/v1", max_retries=0)
    with pytest.raises(client("voyageai").error.InvalidRequestError, match="'poem' is not one of"):
        sdk.embed(TEXTS, model="m", input_type="poem")


@shows("huggingface-hub", "InferenceClient.feature_extraction, .sentence_similarity", "/")
def test_hugging_face_embeddings(dense: Served) -> None:
    sdk = client("huggingface_hub").InferenceClient(model=url(dense))
    np.testing.assert_allclose(sdk.feature_extraction(TEXTS[0]), vectors(dense, normalize=True)[:1], atol=1e-6)
    one, other = vectors(dense, normalize=True)
    (score,) = sdk.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    assert score == pytest.approx(float(one @ other), abs=1e-6)


@shows("huggingface-hub", "InferenceClient.text_classification", "/")
def test_hugging_face_classification(classifier: Served) -> None:
    sdk = client("huggingface_hub").InferenceClient(model=url(classifier))
    answer = sdk.text_classification("so sunny")
    row = classifier.model.classify(["so sunny"])[0]
    assert [entry.score for entry in answer] == pytest.approx(sorted(row.tolist(), reverse=True), abs=1e-6)
    assert answer[0].label == ["joy", "anger", "none"][int(row.argmax())]
    best = sdk.text_classification("so sunny", function_to_apply="none", top_k=2)
    raw = np.sort(classifier.model.classify(["so sunny"], activation="none")[0])
    assert [entry.score for entry in best] == pytest.approx(raw[:0:-1].tolist(), abs=1e-6)


@shows("huggingface-hub", "InferenceClient.zero_shot_classification", "/")
def test_hugging_face_labels_of_the_requests_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    names = {0: "entailment", 1: "not_entailment"}
    head = "BertForSequenceClassification"
    for served in serving(lambda folder: save(folder, head, id2label=names), tmp_path_factory, "nli"):
        sdk = client("huggingface_hub").InferenceClient(model=url(served))
        labels, template = ["lovely weather", "a query"], "it is {} today"
        answer = sdk.zero_shot_classification(TEXTS[0], labels, hypothesis_template=template, multi_label=True)
        pairs = [(TEXTS[0], template.format(label)) for label in labels]
        expected = dict(zip(labels, served.model.classify(pairs)[:, 0].tolist(), strict=True))
        assert {entry.label: entry.score for entry in answer} == pytest.approx(expected, abs=1e-6)
        assert [entry.score for entry in answer] == sorted((entry.score for entry in answer), reverse=True)


def test_hugging_face_is_told_that_a_model_labels_tokens(tagger: Served) -> None:
    """Without a parameter its calls of both kinds are the same body."""
    sdk = client("huggingface_hub").InferenceClient(model=url(tagger))
    with pytest.raises(client("huggingface_hub").errors.HfHubHTTPError, match="424") as caught:
        sdk.text_classification("so sunny", top_k=1)
    assert "this model labels tokens" in caught.value.response.text


@shows("huggingface-hub", "InferenceClient.token_classification", "/")
def test_hugging_face_entities(tagger: Served) -> None:
    sdk, text = client("huggingface_hub").InferenceClient(model=url(tagger)), "the weather is lovely today"
    for strategy in (None, "none", "max"):
        answer = sdk.token_classification(text, aggregation_strategy=strategy)
        (entities,) = tagger.model.entities(text, aggregation_strategy=strategy or "simple")
        found = [(entry.word, entry.start, entry.end, np.float32(entry.score)) for entry in answer]
        assert found == [(entry.word, entry.start, entry.end, np.float32(entry.score)) for entry in entities]
        assert [entry.entity_group or entry.entity for entry in answer] == [entry.label for entry in entities]


@shows("llama-index-embeddings-text-embeddings-inference", "TextEmbeddingsInference", "/embed")
def test_llama_index_tei(dense: Served) -> None:
    module = client("llama_index.embeddings.text_embeddings_inference")
    embedding = module.TextEmbeddingsInference(model_name="m", base_url=url(dense))
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), vectors(dense, normalize=True), atol=1e-6)


def nodes(count: int = 3) -> Any:
    schema = client("llama_index.core.schema")
    return [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in DOCUMENTS[:count]]


@shows("llama-index-postprocessor-tei-rerank", "TextEmbeddingInference", "/rerank")
def test_llama_index_tei_rerank(reranker: Served) -> None:
    module = client("llama_index.postprocessor.tei_rerank")
    found = module.TextEmbeddingInference(base_url=url(reranker), top_n=2).postprocess_nodes(nodes(), query_str=QUERY)
    assert [(DOCUMENTS.index(entry.node.text), entry.score) for entry in found] == best(reranker, 2)


@shows("llama-index-postprocessor-cohere-rerank", "CohereRerank", "/v2/rerank")
def test_llama_index_cohere_rerank(reranker: Served) -> None:
    module = client("llama_index.postprocessor.cohere_rerank")
    rerank = module.CohereRerank(api_key="unused", model="m", base_url=url(reranker), top_n=2)
    found = rerank.postprocess_nodes(nodes(), query_str=QUERY)
    assert [(DOCUMENTS.index(entry.node.text), entry.score) for entry in found] == best(reranker, 2)


@shows("langchain-cohere", "CohereRerank, CohereEmbeddings", "/v2/rerank, /v2/embed")
def test_langchain_cohere(dense: Served, reranker: Served) -> None:
    module = client("langchain_cohere")
    rerank = module.CohereRerank(cohere_api_key="unused", base_url=url(reranker), model="m")
    found = rerank.rerank(DOCUMENTS, QUERY, top_n=2)
    assert [(entry["index"], entry["relevance_score"]) for entry in found] == best(reranker, 2)
    embeddings = module.CohereEmbeddings(cohere_api_key="unused", base_url=url(dense), model="m")
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), vectors(dense), atol=1e-6)


@pytest.fixture(scope="module")
def litellm() -> Any:
    import os

    # It otherwise fetches its price list from the network when it is imported.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    return client("litellm")


@shows("litellm", "embedding(hosted_vllm/…, infinity/…)", "/v1/embeddings, /embeddings")
@pytest.mark.parametrize(("provider", "suffix"), [("hosted_vllm", "/v1"), ("infinity", "")])
def test_litellm_embedding(provider: str, suffix: str, litellm: Any, dense: Served) -> None:
    answer = litellm.embedding(f"{provider}/m", TEXTS, api_base=f"{url(dense)}{suffix}", api_key="unused")
    np.testing.assert_allclose([item["embedding"] for item in answer.data], vectors(dense), atol=1e-6)


@shows("litellm", "embedding(huggingface/…, input_type='embed')", "/embed")
def test_litellm_hugging_face(litellm: Any, dense: Served) -> None:
    """Without `input_type`, which names the model's task, it asks the hub for that, whatever server it is sent to."""
    answer = litellm.embedding(
        "huggingface/m", TEXTS, api_base=f"{url(dense)}/embed", api_key="unused", input_type="embed"
    )
    expected = vectors(dense, normalize=True)
    np.testing.assert_allclose([item["embedding"] for item in answer.data], expected, atol=1e-6)


@shows("litellm", "embedding(voyage/…, jina_ai/…)", "/v1/embeddings")
@pytest.mark.parametrize("provider", ["voyage", "jina_ai"])
def test_litellm_embedding_of_other_providers(provider: str, litellm: Any, dense: Served) -> None:
    base = f"{url(dense)}/v1"
    answer = litellm.embedding(f"{provider}/m", TEXTS, dimensions=16, api_base=base, api_key="unused")
    np.testing.assert_allclose([item["embedding"] for item in answer.data], vectors(dense, dimensions=16), atol=1e-6)


@shows("litellm", "rerank(voyage/…, jina_ai/…, huggingface/…)", "/v1/rerank, /rerank")
@pytest.mark.parametrize("top_n", [None, 2])
@pytest.mark.parametrize("provider", ["voyage", "jina_ai", "huggingface"])
def test_litellm_rerank_of_other_providers(provider: str, top_n: int | None, litellm: Any, reranker: Served) -> None:
    more = {"api_base": url(reranker), "api_key": "unused", "top_n": top_n}
    results = litellm.rerank(f"{provider}/m", QUERY, DOCUMENTS, **more).results
    found = [(result["index"], result["relevance_score"]) for result in results]
    if provider == "huggingface" and top_n:  # TEI answers with all, whatever is asked
        found = found[:top_n]
    assert found == best(reranker, top_n or 3)
    assert results[0]["document"]["text"] == DOCUMENTS[results[0]["index"]]


@shows("litellm", "rerank(nvidia_nim/…, nvidia_nim/ranking/…)", "/v1/retrieval/…/reranking, /v1/ranking")
@pytest.mark.parametrize("model", ["nvidia/llama-3_2-nv-rerankqa-1b-v2", "ranking/m"])
def test_litellm_rerank_of_nvidia(model: str, litellm: Any, reranker: Served) -> None:
    more = {"api_base": url(reranker), "api_key": "unused", "top_n": 2}
    results = litellm.rerank(f"nvidia_nim/{model}", QUERY, DOCUMENTS, **more).results
    entries = reranker.model.rerank(QUERY, DOCUMENTS, activation="none")[:2]
    assert [result["index"] for result in results] == [entry.index for entry in entries]
    logits = [result["relevance_score"] for result in results]
    assert logits == pytest.approx([entry.score for entry in entries], abs=1e-5)


@shows("litellm", "rerank(hosted_vllm/…, infinity/…, cohere/…)", "/rerank, /v2/rerank")
@pytest.mark.parametrize("provider", ["hosted_vllm", "infinity", "cohere"])
def test_litellm_rerank(provider: str, litellm: Any, reranker: Served) -> None:
    base = f"{url(reranker)}/v2/rerank" if provider == "cohere" else url(reranker)
    more = {"api_base": base, "api_key": "unused", "return_documents": provider != "infinity"}
    answer = litellm.rerank(f"{provider}/m", QUERY, DOCUMENTS, top_n=2, **more)
    assert [(result["index"], result["relevance_score"]) for result in answer.results] == best(reranker, 2)


@shows("ollama", "Client.embed, .embeddings, .list, .ps, .show", "/api/embed, /api/embeddings, /api/tags, …")
def test_ollama(dense: Served) -> None:
    sdk = client("ollama").Client(host=url(dense))
    answer = sdk.embed("tiny:latest", TEXTS, options={"num_ctx": 512}, keep_alive="5m")
    np.testing.assert_allclose(answer.embeddings, vectors(dense, normalize=True), atol=1e-6)
    assert (answer.model, answer.prompt_eval_count) == ("tiny", 13) and answer.total_duration > 0
    sliced = sdk.embed("tiny", TEXTS, dimensions=16, truncate=True).embeddings
    np.testing.assert_allclose(sliced, vectors(dense, normalize=True, dimensions=16), atol=1e-6)
    plain = sdk.embeddings("tiny", TEXTS[0]).embedding
    np.testing.assert_allclose(plain, vectors(dense, normalize=False)[0], atol=1e-5)
    assert sdk.embed("tiny").embeddings == []
    assert [entry.model for entry in sdk.list().models] == ["tiny:latest"]
    assert [entry.name for entry in sdk.ps().models] == ["tiny:latest"]
    shown = sdk.show("tiny")
    assert (shown.capabilities, shown.modelinfo["bert.embedding_length"]) == (["embedding"], 32)


@shows("ollama", "AsyncClient.embed", "/api/embed")
def test_ollama_async(dense: Served) -> None:
    sdk = client("ollama").AsyncClient(host=url(dense))

    async def embed() -> Any:
        answers = await asyncio.gather(*(sdk.embed("tiny", text) for text in TEXTS))
        await sdk.close()
        return [answer.embeddings[0] for answer in answers]

    np.testing.assert_allclose(asyncio.run(embed()), vectors(dense, normalize=True), atol=1e-6)


def test_ollama_errors(dense: Served) -> None:
    ollama = client("ollama")
    sdk = ollama.Client(host=url(dense))
    with pytest.raises(ollama.ResponseError, match="the input length exceeds the context length") as caught:
        sdk.embed("tiny", "so sunny " * 60, truncate=False)
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="does not support /api/chat"):
        sdk.chat("tiny", [{"role": "user", "content": "hi"}])
    with pytest.raises(ollama.ResponseError, match="does not support /api/pull"):
        next(iter(sdk.pull("tiny", stream=True)))


@shows("langchain-ollama", "OllamaEmbeddings(validate_model_on_init=True)", "/api/embed, /api/tags")
def test_langchain_ollama(dense: Served) -> None:
    embeddings = client("langchain_ollama").OllamaEmbeddings
    for name in ("tiny", "tiny:latest"):
        own = embeddings(model=name, base_url=url(dense), validate_model_on_init=True)
        np.testing.assert_allclose(own.embed_documents(TEXTS), vectors(dense, normalize=True), atol=1e-6)
        np.testing.assert_allclose(own.embed_query(TEXTS[0]), vectors(dense, normalize=True)[0], atol=1e-6)
    assert own.embed_documents([]) == []
    with pytest.raises(ValueError, match="`llama3` not found"):
        embeddings(model="llama3", base_url=url(dense), validate_model_on_init=True)


@shows("llama-index-embeddings-ollama", "OllamaEmbedding", "/api/embed")
def test_llama_index_ollama(dense: Served) -> None:
    embedding = client("llama_index.embeddings.ollama").OllamaEmbedding(model_name="tiny", base_url=url(dense))
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), vectors(dense, normalize=True), atol=1e-6)
    np.testing.assert_allclose(embedding.get_query_embedding(TEXTS[0]), vectors(dense, normalize=True)[0], atol=1e-6)


@shows("litellm", "embedding(ollama/…), get_model_info", "/api/embed, /api/show")
def test_litellm_ollama(litellm: Any, dense: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = litellm.embedding("ollama/tiny", TEXTS, api_base=url(dense))
    np.testing.assert_allclose([item["embedding"] for item in answer.data], vectors(dense, normalize=True), atol=1e-6)
    assert answer.usage.prompt_tokens == 13
    monkeypatch.setenv("OLLAMA_API_BASE", url(dense))
    assert litellm.get_model_info("ollama/tiny")["max_input_tokens"] == 64


def test_the_page_is_current() -> None:
    docs = client_table.CONSTRAINTS.parent / "docs" / "clients.md"
    assert docs.read_text() == client_table.page(), "python -m tests.server.client_table > docs/clients.md"
