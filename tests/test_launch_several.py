"""One process with three real checkpoints: an embedder, a reranker and a classifier, by name and without."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.config import ServerConfig
from rtp_llm.core import Request, TaskType
from rtp_llm.engine.loading import load_engines
from rtp_llm.errors import CheckpointError
from rtp_llm.served_models import ServedModel
from tests.real_server import Running, free_port, running
from tests.test_launch import embed, fails

PAIR = {"query": "the weather", "documents": ["is lovely today", "he drove to stadium", "so sunny outside !"]}


def tiny_head(folder: Path, plain: Path, labels: dict[int, str], **options: Any) -> Path:
    """A BERT of random weights with a classification head, and the tokenizer of `plain`."""
    transformers = pytest.importorskip("transformers")
    transformers.set_seed(len(labels))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), id2label=labels, label2id={v: k for k, v in labels.items()}, **sizes, **options
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(minilm: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("several")
    return {
        "mini": minilm,
        "ranker": tiny_head(made / "ranker", tiny_bert, {0: "score"}),
        "moods": tiny_head(made / "moods", tiny_bert, {0: "bad", 1: "good", 2: "so so"}),
    }


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, port = tmp_path_factory.mktemp("log"), free_port()
    entries = [f"  - {{name: {name}, checkpoint_path: {path}}}" for name, path in folders.items()]
    entries[1] = entries[1].replace("}", ", task_type: RERANKER}")
    (folder / "models.yaml").write_text("\n".join(["models:", *entries]))
    with running(["--models", str(folder / "models.yaml"), "--port", str(port)], folder / "log", port) as server:
        yield server


def test_what_is_loaded(server: Running) -> None:
    data = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [(model["id"], model["tasks"][0]) for model in data] == [
        ("mini", "dense"), ("ranker", "rerank"), ("moods", "classify")
    ]  # fmt: skip
    assert data[0]["weight_bytes"] == pytest.approx(90.9e6, rel=0.01)
    log = server.log.read_text()
    assert "loading ranker, model 2 of 3" in log and "loaded mini in" in log and "weights of 90.9 MB, memory" in log


def test_embeddings_are_minilms_own(server: Running, minilm: Path) -> None:
    texts = ["hello world", "the weather is lovely"]
    vectors = embed(server.url, texts)
    with Model(minilm) as model:
        assert np.array_equal(vectors, model.embed(texts))
    named = httpx.post(f"{server.url}/v1/embeddings", json={"input": texts, "model": "mini"}).json()
    assert named["model"] == "mini" and np.allclose(named["data"][0]["embedding"], vectors[0])
    wrong = httpx.post(f"{server.url}/v1/embeddings", json={"input": texts, "model": "ranker"})
    assert wrong.status_code == 400 and wrong.json()["error"]["code"] == "unsupported_task"


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank(server: Running, folders: dict[str, Path], path: str) -> None:
    answer, named = (
        httpx.post(f"{server.url}{path}", json={**PAIR, **name}).raise_for_status().json()
        for name in ({}, {"model": "ranker"})
    )
    assert answer["results"] == named["results"] and answer["model"] == "ranker"
    with Model(folders["ranker"], task_type="RERANKER") as model:
        ranked = model.rerank(str(PAIR["query"]), PAIR["documents"], activation="sigmoid")
    assert [result["index"] for result in answer["results"]] == [result.index for result in ranked]
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx([r.score for r in ranked])
    # By its vectors, an embedder reranks as well, where it is asked to.
    assert httpx.post(f"{server.url}{path}", json={**PAIR, "model": "mini"}).json()["model"] == "mini"


def test_classify(server: Running, folders: dict[str, Path]) -> None:
    answer, named = (
        httpx.post(f"{server.url}/classify", json={"input": ["the weather"], **name}).raise_for_status().json()
        for name in ({}, {"model": "moods"})
    )
    with Model(folders["moods"]) as model:
        assert answer["data"][0]["probs"] == pytest.approx(model.classify(["the weather"])[0].tolist(), abs=1e-6)
    assert answer["data"] == named["data"] and answer["model"] == "moods"


def test_together_they_answer_as_alone(server: Running) -> None:
    """Bit for bit: batches of three models take turns on the same streams."""
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/embeddings", {"input": ["hello world", "the weather is lovely " * 20]}),
        ("/rerank", PAIR),
        ("/classify", {"input": ["the weather", "he drove to stadium"]}),
    ]

    def ask(number: int) -> Any:
        path, body = bodies[number % 3]
        answer = httpx.post(f"{server.url}{path}", json=body, timeout=60).raise_for_status().json()
        return answer.get("data") or answer["results"]

    alone = [ask(number) for number in range(3)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(24))) == alone * 8


def test_an_unknown_name(server: Running) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a", "model": "gpt-4"})
    assert answer.status_code == 404 and "serves 'mini', 'ranker', 'moods'" in answer.json()["error"]["message"]


def test_metrics(server: Running) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    assert all(f'rtp_llm_requests_in_flight{{lane="bulk",model="{name}"}}' in text for name in ("mini", "moods"))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["--checkpoint_path", "{tiny}", "--checkpoint_path", "x=/no/where"],
            1,
            "model x: checkpoint_path: there is no folder",
        ),
        (["--models", "/no/file"], 2, "/no/file cannot be read"),
        (["--checkpoint_path", "{tiny}", "--checkpoint_path", "{tiny}"], 2, "both called 'saved'"),
    ],
)
def test_what_cannot_start(tiny_bert: Path, tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    actual, log = fails([text.format(tiny=tiny_bert) for text in arguments], tmp_path)
    assert actual == status and message in log and "Traceback" not in log


def test_models_share_device_and_streams(tiny_bert: Path) -> None:
    configs = [ServerConfig(checkpoint_path=str(tiny_bert), served_model_name=name, num_threads=2) for name in "ab"]
    first, second = load_engines([ServedModel(config, (f"{config.model_name}2",)) for config in configs])
    try:
        assert first.device is second.device and first.runtime.num_cores == second.runtime.num_cores
        assert vars(first.runtime)["streams"] is vars(second.runtime)["streams"]
        assert second.info().aliases == ("b2",) and second.info().weight_bytes == first.info().weight_bytes > 10_000
    finally:
        first.close()


def test_models_share_a_torch_device(folders: dict[str, Path], tiny_bert: Path) -> None:
    pytest.importorskip("torch")
    paths = {"mini": folders["mini"], "tiny": tiny_bert}
    options: dict[str, Any] = {"backend": "torch", "device": "cpu"}
    models = [
        ServerConfig(checkpoint_path=str(path), served_model_name=name, **options) for name, path in paths.items()
    ]
    engines = load_engines([ServedModel(config) for config in models])
    try:
        assert len({id(vars(engine.runtime)["device"]) for engine in engines}) == 1
        requests = [Request(inputs=["a", f"one {place} more"]) for place in range(6)]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda engine: list(engine.run_many(requests)), engines))
        for path, found in zip(paths.values(), answers, strict=True):
            with Model(path) as model:
                for request, response in zip(requests, found, strict=True):
                    rows = np.stack(response.outputs[TaskType.DENSE])
                    np.testing.assert_allclose(rows, model.embed(list(request.inputs)), atol=1e-5)
    finally:
        engines[0].close()


def test_one_that_does_not_load_ends_the_others(tiny_bert: Path) -> None:
    paths = {"a": str(tiny_bert), "b": "/no/where"}
    models = [ServedModel(ServerConfig(checkpoint_path=path, served_model_name=name)) for name, path in paths.items()]
    others = set(threading.enumerate())  # of models that other tests share
    with pytest.raises(CheckpointError, match="model b: checkpoint_path: there is no folder"):
        load_engines(models)
    assert not [thread for thread in set(threading.enumerate()) - others if thread.name.startswith("batch-")]
