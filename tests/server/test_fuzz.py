"""Bodies grown from the examples of the OpenAPI document: whatever is asked, nothing is a 5xx and nothing hangs.

`pytest -m slow` tries 50,000 of them.
"""

import copy
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rtp_llm.server.openapi import document
from tests.real_server import free_port, running
from tests.server.conftest import MAX_BODY_BYTES
from tests.server.rtp_clients import served
from tests.tasks.checkpoints import save, save_m3

pytest.importorskip("torch")

HANG = 2.0  # seconds
quick = settings(max_examples=400, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)

DOCUMENT = document()
SCHEMAS = DOCUMENT["components"]["schemas"]


def _bodies() -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """Path -> the examples, and the schemas of all fields."""
    bodies = {}
    for path, methods in DOCUMENT["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        if content:
            names = [reference["$ref"].rsplit("/", 1)[1] for reference in _references(content["schema"])]
            fields = {field: schema for name in names for field, schema in SCHEMAS[name].get("properties", {}).items()}
            bodies[path] = ([example["value"] for example in content["examples"].values()], fields)
    return bodies


def _references(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [schema] if "$ref" in schema else [one for one in schema.get("anyOf", []) if "$ref" in one]


BODIES = _bodies()
WORDS = [choice for fields in SCHEMAS.values() for field in fields.get("properties", {}).values()
         for one in (field, *field.get("anyOf", [])) for choice in one.get("enum", [])]  # fmt: skip
TEXTS = st.text(max_size=30) | st.sampled_from(
    [
        "",
        " ",
        "\0",
        "\n" * 99,
        "a " * 3000,
        "🦜" * 999,
        "\u202e\ufeff",
        "\ud800",
        "[CLS]",
        "[PAD] [MASK]",
        "中" * 500,
        "e\u0301" * 200,
    ]
)
NUMBERS = st.integers(-3, 300) | st.sampled_from(
    [2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320, float("inf"), float("nan")]
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS | st.sampled_from(WORDS)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of the schema's type, which may still be wrong ones."""
    if "$ref" in schema:
        return fitting(SCHEMAS[schema["$ref"].rsplit("/", 1)[1]])
    if "anyOf" in schema:
        return st.one_of([fitting(one) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        return st.lists(fitting(items or {"type": "string"}), max_size=4)
    if schema.get("type") == "object":
        fields = schema.get("properties", {})
        return st.fixed_dictionaries({}, optional={name: fitting(one) for name, one in fields.items()})
    kinds = {"string": TEXTS, "integer": st.integers(-1, 40), "number": st.floats(0, 2), "boolean": st.booleans()}
    return kinds.get(schema.get("type", ""), st.none())


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every node."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def changed(value: Any, path: tuple[Any, ...], draw: st.DataObject) -> Any:
    """`value` with the node at `path` replaced, wrapped, repeated or dropped."""
    if path:
        copied = copy.copy(value)
        copied[path[0]] = changed(value[path[0]], path[1:], draw)
        return copied
    how = draw.draw(st.sampled_from(["value", "same kind", "list", "object", "many", "pair"]))
    if how == "same kind" and isinstance(value, str):
        return draw.draw(TEXTS)
    if how == "same kind" and isinstance(value, (int, float)):
        return draw.draw(NUMBERS)
    wrapped = {"list": [value], "object": {"text": value}, "pair": [value, value]}
    if how == "many":
        return (value if isinstance(value, list) else [value]) * draw.draw(st.integers(0, 60))
    return wrapped[how] if how in wrapped else draw.draw(VALUES)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path and a body for it: its example, with fields added and nodes changed, sometimes damaged as bytes."""
    path = draw(st.sampled_from(sorted(BODIES)))
    examples, fields = BODIES[path]
    body: Any = copy.deepcopy(draw(st.sampled_from(examples)))
    for field in draw(st.lists(st.sampled_from([*fields, "surprise"]), max_size=3)):
        body[field] = draw(fitting(fields[field]) if field in fields and draw(st.integers(0, 5)) else VALUES)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(st.sampled_from(list(places(body))))
        body = changed(body, place, draw(st.data()))
    content = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        start = draw(st.integers(0, len(content)))
        content = content[:start] + draw(st.binary(max_size=3)) + content[start + draw(st.integers(0, 5)) :]
    return path, content


def ask(client: httpx.Client, path: str, content: bytes) -> int:
    """The status of an answer in time that is JSON, without NaN, or vectors as bytes, and no fault of the server's."""
    answer = client.post(path, content=content, timeout=HANG)
    assert answer.status_code < 500, (path, content, answer.text)
    assert "Traceback" not in answer.text and answer.headers["x-request-id"]
    if answer.headers["content-type"] == "application/octet-stream":
        told = json.loads(answer.headers.get("metadata", '{"data": []}'))["data"]  # bytes_only tells nothing
        assert answer.status_code == 200 and all(item["end"] <= len(answer.content) for item in told)
        return answer.status_code
    answered = json.loads(answer.content, parse_constant=_refuse)
    assert answer.status_code == 200 or answered, (path, content, answer.text)
    return answer.status_code


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


MODELS: dict[str, Callable[[Path], Any]] = {
    "m3": save_m3,
    "reranker": partial(save, head="BertForSequenceClassification", num_labels=1),
}


@pytest.fixture(scope="module", params=MODELS)
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    MODELS[request.param](folder)
    with served(folder, max_body_bytes=MAX_BODY_BYTES) as one:
        yield one.client


@quick
@given(one=requests())
def test_bodies(client: httpx.Client, one: tuple[str, bytes]) -> None:
    ask(client, *one)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", MODELS)
def test_many_bodies(name: str, tmp_path: Path) -> None:
    """25,000 to a server in a process of its own, whose memory stays as it is after the first 5,000."""
    MODELS[name](tmp_path / "model")
    port, statuses, slowest = free_port(), Counter[int](), [0.0]
    options = ["--port", str(port), "--backend", "numpy", "--max_body_bytes", str(MAX_BODY_BYTES)]

    with (
        running([str(tmp_path / "model"), *options, "--max_client_batch_size", "50"], tmp_path / "log", port) as server,
        httpx.Client(base_url=server.url, timeout=HANG, trust_env=False) as client,
    ):

        @settings(quick, max_examples=5_000)
        @given(one=requests())
        def some(one: tuple[str, bytes]) -> None:
            began = time.perf_counter()
            statuses[ask(client, *one)] += 1
            slowest[0] = max(slowest[0], time.perf_counter() - began)

        megabytes = []
        for _ in range(5):
            some()
            megabytes.append(resident(server.process.pid) >> 20)
    told = f"statuses {dict(statuses)}, slowest {slowest[0]:.3f} s, MiB after each 5,000: {megabytes}"
    sys.stdout.write(f"\n{name}: {told}\n")
    assert megabytes[-1] - megabytes[0] < 32


def resident(pid: int) -> int:
    """Bytes in memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_every_example_is_answered(client: httpx.Client) -> None:
    for path, (examples, _) in BODIES.items():
        for example in examples:
            ask(client, path, json.dumps(example).encode())
