"""Every example of the description is answered by a real server, and fits the schema it stands beside."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtp_llm.server.dispatch import DIALECTS
from rtp_llm.server.openapi import document
from rtp_llm.server.openapi_dialects import ROWS
from rtp_llm.server.openapi_words import FAILURES, TAGS
from tests.real_server import ROOT
from tests.server.rtp_clients import served
from tests.tasks.checkpoints import save, save_m3

pytest.importorskip("torch")
jsonschema: Any = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

DOCUMENT = document()
OPERATIONS = [
    pytest.param(path, method, id=f"{method} {path}")
    for path, methods in DOCUMENT["paths"].items()
    for method in methods
]
POSTS = [path for row in ROWS for path in row.paths]


def fits(value: Any, schema: dict[str, Any]) -> None:
    jsonschema.validate(value, {**schema, "components": DOCUMENT["components"]})


def examples_of(content: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    media = content.get("application/json", {})
    return [(example["value"], media["schema"]) for example in media.get("examples", {}).values()]


@pytest.fixture(scope="module")
def clients(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[httpx.Client]]:
    """Of models that together do everything."""
    names = ("m3", "ranker", "labels", "tags", "custom")
    m3, ranker, labels, tags, custom = (tmp_path_factory.mktemp(name) for name in names)
    save_m3(m3)
    (m3 / "chat_template.jinja").write_text("{{ messages[0].content }}")
    save(ranker, "BertForSequenceClassification", num_labels=1)
    save(labels, "BertForSequenceClassification", id2label={0: "joy", 1: "anger"})
    save(tags, "BertForTokenClassification", id2label={0: "O", 1: "B-PER", 2: "I-PER"})
    save(custom)
    module = {"custom_module": f"{ROOT}/examples/maxsim_top_k.py:MaxSim"}
    with ExitStack() as stack:
        folders: list[tuple[Path, dict[str, Any]]] = [(folder, {}) for folder in (minilm, m3, ranker, labels, tags)]
        yield [
            stack.enter_context(served(folder, **options)).client for folder, options in [*folders, (custom, module)]
        ]


@pytest.mark.parametrize("path", POSTS)
def test_examples_are_answered(clients: list[httpx.Client], path: str) -> None:
    operation = DOCUMENT["paths"][path]["post"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    for body, _ in examples_of(operation["requestBody"]["content"]):
        answers = [client.post(path, json=body) for client in clients]
        right = [answer for answer in answers if answer.status_code == 200]
        assert right, (body, [answer.text for answer in answers])
        fits(right[0].json(), schema)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_examples_fit_their_schemas(path: str, method: str) -> None:
    operation = DOCUMENT["paths"][path][method]
    contents = [answer.get("content", {}) for answer in operation["responses"].values()]
    for content in [*contents, operation.get("requestBody", {}).get("content", {})]:
        for example, schema in examples_of(content):
            fits(example, schema)


@pytest.mark.parametrize("path", POSTS)
def test_every_failure_has_an_example(path: str) -> None:
    failures = {int(status): answer for status, answer in DOCUMENT["paths"][path]["post"]["responses"].items()}
    assert {401, 404, 408, 413, 415, 429, 503, 504} < set(failures) <= {200, *FAILURES}
    assert all(examples_of(answer["content"]) for answer in failures.values())


def test_the_form_of_a_failure_is_the_routes() -> None:
    told = {path: row.forms[0] for row in ROWS for path in row.paths}
    assert told == {path: route.error_form for path, route in DIALECTS.items()}


def test_every_operation_is_in_a_group_that_is_told_of() -> None:
    tags = {tag for methods in DOCUMENT["paths"].values() for one in methods.values() for tag in one["tags"]}
    assert tags == set(TAGS)


def test_every_field_of_a_body_is_told_of() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    bodies = {name: schema["properties"] for name, schema in schemas.items() if name.endswith("Body")}
    silent = [
        (name, field) for name, fields in bodies.items() for field in fields if not fields[field].get("description")
    ]
    assert not silent
