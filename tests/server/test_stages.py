"""Server-Timing, in every dialect."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rtp_llm.server.dispatch import DIALECTS
from rtp_llm.server.openapi_dialects import ROWS
from tests.server.rtp_clients import Served, serving
from tests.tasks.checkpoints import save, save_m3

pytest.importorskip("torch")

STAGES = ["tokenize", "queue", "compute", "encode", "total"]
TEXTS = ["the weather", "is lovely"]
BODIES = {path: next(iter(row.examples.values())) for row in ROWS for path in row.paths}
NO_MODEL = {"/tokenize", "/detokenize", "/decode", "/tokenizer/encode", "/api/show"}
RAN = sorted(set(DIALECTS) - NO_MODEL - {"/v1/custom"})
BY_CLASSIFIER = {"/classify", "/predict", "/v1/classifier"}


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serving(save_m3, tmp_path_factory, "m3")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    def make(folder: Path) -> None:
        save(folder, "BertForSequenceClassification", id2label={0: "joy", 1: "anger"})

    yield from serving(make, tmp_path_factory, "classifier")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serving(
        lambda folder: save(folder, "BertForSequenceClassification", num_labels=1), tmp_path_factory, "reranker"
    )


@pytest.mark.parametrize("path", RAN)
def test_server_timing(path: str, m3: Served, classifier: Served, reranker: Served) -> None:
    served = classifier if path in BY_CLASSIFIER else reranker if path == "/v1/reranker" else m3
    answer = served.client.post(path, json=BODIES[path])
    assert answer.status_code == 200, answer.text
    told = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert list(told) == STAGES
    times = [float(told[stage]) for stage in STAGES]
    assert min(times) >= 0 and times[-1] > 0 and sum(times[:-1]) <= times[-1] * 1.05 + 0.1
    assert len(answer.headers.get_list("server-timing")) == 1


@pytest.mark.parametrize("accept", ["application/octet-stream", "application/x-npy"])
def test_server_timing_of_binary_answers(accept: str, m3: Served) -> None:
    answer = m3.client.post("/v1/embeddings", json={"input": TEXTS}, headers={"accept": accept})
    assert [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")] == STAGES
