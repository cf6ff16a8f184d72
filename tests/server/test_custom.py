"""POST /v1/custom, and /v1/embeddings of a custom module, over HTTP; launching with one that cannot start."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.engine.loading import load_engine
from tests.real_server import free_port, launch
from tests.server.conftest import running_server
from tests.tasks.checkpoints import TEXTS, save

pytest.importorskip("transformers")

MODULE = """\
import numpy as np

class Firsts:
    dimension = 4

    def __init__(self, source):
        self.scales = {"acme": 1.0, "emca": 2.0}

    def __call__(self, request):
        if request.extra.get("shape"):
            return {"tokens": [len(ids) for ids in request.input_ids], "extra": request.extra, "s": request.extra["s"]}
        if request.extra.get("surrogate"):
            return "\\ud800"
        tenant = request.extra["tenant"]
        if tenant not in self.scales:
            raise ValueError(f"tenant: {tenant!r} is not one of acme, emca")
        return np.stack([states[0, :4] for states in request.hidden_states]) * self.scales[tenant]
"""


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("custom")
    save(folder)
    (folder / "firsts.py").write_text(MODULE)
    config = ServerConfig(checkpoint_path=str(folder), custom_module=f"{folder / 'firsts.py'}:Firsts")
    engine: Any = load_engine(config, "tiny")
    try:
        with (
            running_server(engine, config) as address,
            httpx.Client(base_url=address.url, timeout=20, trust_env=False) as client,
        ):
            yield client
    finally:
        engine.close()


def test_whatever_the_module_returns(custom: httpx.Client) -> None:
    body = {"input": ["the weather", ["he drove", "to stadium"]], "extra": {"shape": True, "s": None}}
    answer = custom.post("/v1/custom", json=body).raise_for_status()
    assert answer.json() == {
        "object": "custom",
        "data": {"tokens": [4, 7], "extra": {"shape": True, "s": None}, "s": None},
        "model": "tiny",
        "usage": {"prompt_tokens": 11, "total_tokens": 11},
    }
    assert answer.headers["usage"] == '{"prompt_tokens":11,"total_tokens":11}'


def test_vectors_on_either_route(custom: httpx.Client) -> None:
    body = {"input": TEXTS, "extra": {"tenant": "acme"}}
    data = custom.post("/v1/custom", json=body).raise_for_status().json()["data"]
    items = custom.post("/v1/embeddings", json=body).raise_for_status().json()["data"]
    assert [item["embedding"] for item in items] == data
    other = custom.post("/v1/embeddings", json={**body, "extra": {"tenant": "emca"}, "normalize": True})
    vectors = np.array([item["embedding"] for item in other.raise_for_status().json()["data"]])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


@pytest.mark.parametrize("path", ["/v1/custom", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("extra", "status", "message", "code"),
    [
        ({"tenant": "nobody"}, 400, "tenant: 'nobody' is not one of acme, emca", None),
        (None, 500, "firsts.py:14: KeyError: 'tenant'", "custom_module_error"),
        ({"tenant": []}, 500, "firsts.py:15: TypeError: unhashable type: 'list'", "custom_module_error"),
    ],
)
def test_whose_fault_it_is(
    path: str, extra: Any, status: int, message: str, code: str | None, custom: httpx.Client
) -> None:
    answer = custom.post(path, json={"input": "a", "extra": extra})
    error = answer.json()["error"]
    assert (answer.status_code, error["message"], error["code"]) == (status, message, code)


def test_what_json_cannot_hold(custom: httpx.Client) -> None:
    answer = custom.post("/v1/custom", json={"input": "a", "extra": {"surrogate": True}})
    assert answer.status_code == 500 and "JSON cannot hold what the custom module" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "input"), ({"input": []}, "input"), ({"input": [1]}, "input[0]"), ({"input": "a", "extra": 3}, "extra")],
)
def test_bad_bodies(body: Any, param: str, custom: httpx.Client) -> None:
    answer = custom.post("/v1/custom", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_bad_requests_do_not_hurt_those_beside_them(custom: httpx.Client) -> None:
    tenants = ["acme", None, "nobody", "emca"] * 8
    statuses: dict[int, int] = {}

    def ask(place: int, tenant: str | None) -> None:
        extra = {"tenant": tenant} if tenant else {}
        statuses[place] = custom.post("/v1/custom", json={"input": TEXTS, "extra": extra}).status_code

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(tenants)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [statuses[place] for place in range(len(tenants))] == [200, 500, 400, 200] * 8


def test_an_ordinary_model_offers_none(client: httpx.Client) -> None:
    assert client.get("/openapi.json").json()["paths"]["/v1/custom"]["post"]["operationId"] == "post_v1_custom"


def test_a_module_that_cannot_start_is_one_line_and_status_1(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "firsts.py").write_text(MODULE.replace('{"acme": 1.0, "emca": 2.0}', 'source.config["scales"]'))
    arguments = [str(tmp_path), "--custom_module", f"{tmp_path / 'firsts.py'}:Firsts", "--port", str(free_port())]
    process = launch(arguments, tmp_path / "log")
    status, log = process.wait(60), (tmp_path / "log").read_text()
    assert status == 1 and "firsts.py:7: KeyError: 'scales'" in log and "Traceback" not in log
