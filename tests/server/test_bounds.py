"""What one request may cost beside its tokens: the memory of its answer, templates, decoding, instances of its own."""

import json
import socket
import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest

from rtp_llm.core import AnswerLimit, Request, Response, TaskType
from rtp_llm.errors import RequestTooLarge
from tests.engine.fakes import FakeRuntime, FakeTask, make_engine
from tests.server.conftest import CONFIG, running_server, wait_until
from tests.server.fake_engine import FakeEngine
from tests.server.test_auth import ask

CHAT = [{"role": "user", "content": "a"}]
TOKEN_TASKS = (TaskType.DENSE, TaskType.COLBERT, TaskType.TOKENS, TaskType.TOKEN_CLASSIFY)


def post(engine: FakeEngine, path: str, config: Any = CONFIG, **body: Any) -> httpx.Response:
    with running_server(engine, config) as address:
        return httpx.post(f"{address.url}{path}", json=body, trust_env=False, timeout=20)


@pytest.mark.parametrize(
    ("path", "body", "number_bytes"),
    [
        ("/embed_all", {"inputs": "a"}, 12),
        ("/v1/embeddings/colbert", {"input": "a"}, 12),
        ("/v1/embeddings/colbert", {"input": "a", "encoding_format": "base64"}, 6),
        ("/v1/embeddings", {"input": "a", "output": ["dense", "colbert"], "output_dtype": "int8"}, 6),
        ("/pooling", {"input": "a", "task": "token_embed"}, 12),
        ("/v1/embeddings/similarity", {"left": ["a"], "right": ["b"], "kind": "colbert"}, 4),
        ("/pooling", {"input": "a", "task": "token_classify"}, 12),
        ("/v1/classifier", {"input": "a"}, 4),
        ("/predict", {"inputs": "a"}, 4),
        ("/predict", {"inputs": "a", "parameters": {"stride": None, "aggregation_strategy": "max"}}, 4),
        ("/embed", {"inputs": "a"}, None),
    ],
)
def test_an_answer_with_a_vector_a_token_has_a_limit(path: str, body: dict[str, Any], number_bytes: int | None) -> None:
    engine = FakeEngine(tasks=TOKEN_TASKS)
    assert post(engine, path, **body).status_code == 200
    limit = AnswerLimit(CONFIG.max_answer_bytes, number_bytes) if number_bytes else None
    assert engine.requests[0].answer_limit == limit


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/v1/embeddings/sparse", {"input": ["a"] * 30}, 413), ("/embed_sparse", {"inputs": ["a"] * 30}, 422)],
)
def test_sparse_vectors_have_a_limit_together(path: str, body: dict[str, Any], status: int) -> None:
    config = replace(CONFIG, max_answer_bytes=1024)
    answer = post(FakeEngine(tasks=(TaskType.SPARSE,)), path, config, **body)
    assert answer.status_code == status and "take about 1440 bytes, the limit is 1024" in answer.text


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classifier", "/pooling"])
@pytest.mark.parametrize("name", ["prompt_name", "encoding_format", "aggregation_strategy", "task", "chunking"])
def test_a_long_value_is_not_sent_back(path: str, name: str) -> None:
    answer = post(FakeEngine(tasks=TOKEN_TASKS), path, **{"input": "a", name: "x` - at `$.zz" * 2000})
    assert answer.status_code in (200, 400) and len(answer.content) < 3000
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] == name


def test_unknown_parameters_are_passed_over() -> None:
    flood: dict[str, Any] = {f"k{i}": [{}] for i in range(200_000)}
    config, parameters = replace(CONFIG, max_body_bytes=1 << 23), {"z": flood, "other": 3}
    answer = post(FakeEngine(tasks=TOKEN_TASKS), "/predict", config, inputs="a", parameters=parameters)
    assert answer.status_code == 200
    wrong = post(FakeEngine(tasks=TOKEN_TASKS), "/predict", inputs="a", parameters={"aggregation_strategy": "up"})
    assert (
        wrong.status_code == 422 and "parameters.aggregation_strategy: invalid enum value 'up', allowed:" in wrong.text
    )


@pytest.mark.parametrize("path", ["/v1/classifier", "/pooling"])
def test_a_request_may_refuse_to_be_cut(path: str) -> None:
    engine = FakeEngine(tasks=TOKEN_TASKS)
    assert post(engine, path, input="a", truncate=False, truncation_side="left").status_code == 200
    params = engine.requests[0].params
    assert (params.truncate, params.truncation_side) == (False, "left")


def test_the_engine_refuses_before_it_computes() -> None:
    runtime = FakeRuntime()
    runtime.tasks[TaskType.TOKENS] = FakeTask()
    engine = make_engine(runtime)
    request = Request(inputs=["abc", "abcd"], tasks=(TaskType.TOKENS,), answer_limit=AnswerLimit(100, 12))
    try:
        with pytest.raises(RequestTooLarge, match=r"take \d+ bytes, the limit is 100 \(max_answer_bytes\)"):
            engine.run_sync(request)
    finally:
        engine.close()
    assert runtime.batches == []


def test_conversations_are_counted_before_any_is_rendered() -> None:
    engine = FakeEngine()
    answer = post(engine, "/v1/embeddings", replace(CONFIG, max_client_batch_size=2), messages=[CHAT] * 3)
    assert answer.status_code == 413 and "3 inputs are over the limit of 2" in answer.json()["error"]["message"]
    assert engine.chats == []
    assert post(engine, "/tokenize", messages=[CHAT] * 3).status_code == 400
    assert engine.chats == []


class HeldTemplate(FakeEngine):
    """Writes no conversation before `go`; `begun` are those that it was to write."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.go, self.begun = threading.Event(), 0

    def chat(self, *arguments: Any, **options: Any) -> str:
        self.begun += 1
        assert self.go.wait(60)
        return super().chat(*arguments, **options)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/classify"])
def test_rendering_takes_a_place_and_ends_with_its_client(path: str) -> None:
    engine = HeldTemplate(tasks=(TaskType.CLASSIFY, TaskType.DENSE), labels=("no", "yes"))
    content = json.dumps({"messages": [CHAT] * 50}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    with (
        running_server(engine, replace(CONFIG, concurrency_limit=1)) as address,
        httpx.Client(base_url=address.url, trust_env=False, timeout=60) as client,
    ):
        with socket.create_connection(("127.0.0.1", address.port)) as leaver:
            leaver.sendall(head + content)
            wait_until(lambda: engine.begun == 1)
            assert client.post(path, json={"input": "a"}).status_code == 429
        wait_until(lambda: client.post(path, json={"input": "a"}).status_code == 200, 60)
        late = client.post(path, content=content, headers={"x-request-timeout": "0.3"})
        assert (late.status_code, engine.begun) == (504, 2)
        engine.go.set()
        assert client.post(path, json={"input": "a"}).status_code == 200
    assert engine.begun == 2 and [[*request.inputs] for request in engine.requests] == [["a"]] * 2


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/detokenize", {"tokens": [1] * 31}, "tokens has 31 token ids, the limit is 30"),
        ("/decode", {"ids": [1] * 31}, "ids has 31 token ids, the limit is 30"),
        ("/decode", {"ids": [[1], [1] * 31]}, "ids[1] has 31 token ids, the limit is 30"),
        ("/decode", {"ids": [[1] * 20, [1] * 20]}, "ids has 40 token ids in all, the limit is 30"),
    ],
)
def test_ids_to_decode_are_bounded(path: str, body: dict[str, Any], place: str) -> None:
    answer = ask(replace(CONFIG, max_request_tokens=30), "POST", path, json=body)
    assert answer.status_code in (413, 422) and place in answer.text


def test_no_sequence_is_decoded_for_long() -> None:
    answer = post(FakeEngine(), "/detokenize", replace(CONFIG, max_body_bytes=1 << 20), tokens=[1] * 200_001)
    assert answer.status_code == 413 and "the limit is 200000" in answer.json()["error"]["message"]


class Together(FakeEngine):
    """`most` is the number of its requests that have been under way at once."""

    most = 0

    async def run(self, request: Request) -> Response:
        self.most = max(self.most, self.running + 1)
        return await super().run(request)


def test_instances_run_together_and_their_answers_keep_their_order() -> None:
    engine = Together()
    engine.delay = 0.05
    answer = post(engine, "/vertex", instances=[{"inputs": f"{place}"} for place in range(16)])
    assert engine.most == 8
    alone = [post(engine, "/embed", inputs=f"{place}").json() for place in range(2)]
    assert answer.json()["predictions"][:2] == alone and len(answer.json()["predictions"]) == 16


def test_instances_share_a_deadline_and_a_count() -> None:
    engine, instances = FakeEngine(), [{"inputs": ["a"] * 3} for _ in range(4)]
    engine.delay = 0.2
    with running_server(engine, replace(CONFIG, max_client_batch_size=10)) as address:
        options: dict[str, Any] = {"json": {"instances": instances}, "trust_env": False, "timeout": 60}
        many = httpx.post(f"{address.url}/vertex", **options)
        instances.pop()
        assert httpx.post(f"{address.url}/vertex", **options).status_code == 200
        options["json"] = {"instances": [{"inputs": "a"}] * 10}
        # Eight at a time: the last two begin when there is too little left for them.
        late = httpx.post(f"{address.url}/vertex", headers={"x-request-timeout": "0.3"}, **options)
        assert late.status_code == 504 and "after 0.3 seconds" in late.json()["error"]
    assert many.status_code == 422 and many.json()["error"].startswith("instances[3]: 12 inputs are over the limit")


def test_answers_to_instances_have_a_limit_together() -> None:
    instances = [{"inputs": "a"}] * 100
    answer = post(FakeEngine(), "/vertex", replace(CONFIG, max_answer_bytes=1024), instances=instances)
    assert answer.status_code in (413, 422) and "max_answer_bytes" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/invocations", "/vertex"])
def test_bodies_of_every_dialect_for_the_clouds_paths(path: str) -> None:
    engine = FakeEngine()
    for body in ({"input": "a"}, {"query": "a", "documents": ["b"]}, {"left": ["a"], "right": ["b"]}, {"inputs": "a"}):
        sent = {"instances": [body]} if path == "/vertex" else body
        answer = post(engine, path, **sent)
        assert answer.status_code == 200, answer.text
    packed = {"instances": [{"input": "a", "encoding_format": "bytes"}]}
    assert "instances[0]: bytes are no JSON" in post(FakeEngine(), "/vertex", **packed).json()["error"]


def test_small_reranks_wait_for_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtp_llm.server.turns.Turns.join", None)
    ranks = {"query": "a", "documents": ["b", "c"]}
    for tasks in ((TaskType.RERANK,), (TaskType.DENSE,)):
        assert post(FakeEngine(tasks=tasks), "/rerank", **ranks).status_code == 200
    for path, body in {"/rerank": ranks, "/v1/reranker": ranks, "/rerank/": {"query": "a", "texts": ["b"]}}.items():
        assert post(FakeEngine(tasks=(TaskType.COLBERT,)), path, **body).status_code in (424, 500)
