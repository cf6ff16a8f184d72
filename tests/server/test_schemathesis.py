"""Calls that schemathesis makes from the OpenAPI document: what is answered is what the document says."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rtp_llm.server.openapi import document
from tests.server.rtp_clients import served
from tests.tasks.checkpoints import save_m3

pytest.importorskip("torch")
schemathesis: Any = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed: pip install schemathesis"
)

quick = settings(max_examples=8, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
SCHEMA = schemathesis.openapi.from_dict(document())
OPERATIONS = [(path, method) for path, methods in document()["paths"].items() for method in methods]
MODES = schemathesis.GenerationMode
CHECKS = [
    getattr(schemathesis.checks, name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    )
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("m3")
    save_m3(folder)
    with served(folder) as one:
        yield str(one.client.base_url)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@quick
@given(data=st.data())
def test_answers_are_as_described(url: str, path: str, method: str, data: st.DataObject) -> None:
    operation = SCHEMA[path][method]
    for mode in (MODES.POSITIVE, MODES.NEGATIVE) if operation.body else (MODES.POSITIVE,):
        case = data.draw(operation.as_strategy(generation_mode=mode))
        answer = case.call(base_url=url, timeout=30)
        assert answer.status_code < 500 or answer.status_code == 504, answer.text
        # NOTE: schemathesis 4.32 turns a tuple's prefixItems into a list of items, and calls that an invalid schema.
        with suppress(schemathesis.errors.InvalidSchema):
            # A caller that leaves no time gets the 504 it asked for.
            case.validate_response(answer, checks=CHECKS[1:] if answer.status_code == 504 else CHECKS)
