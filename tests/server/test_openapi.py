"""The description is valid, complete, and agrees with what the server answers."""

import json
import re
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from rtp_llm.config import ServerConfig
from rtp_llm.server.dispatch import DIALECTS, Dispatcher
from rtp_llm.server.openapi import document
from tests.server.fake_engine import FakeEngine


def test_document_is_valid() -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
    validator.validate(document())


def test_every_route_is_described() -> None:
    described = {(path, method) for path, methods in document()["paths"].items() for method in methods}
    routes: list[Route] = Dispatcher(FakeEngine(), ServerConfig(checkpoint_path="fake")).routes
    served = {
        (route.path.replace(":path", ""), m.lower()) for route in routes for m in route.methods or () if m != "HEAD"
    }
    assert described == served | {(path, "post") for path in DIALECTS}


def test_every_reference_leads_somewhere() -> None:
    described = document()
    names = set(re.findall(r"#/components/schemas/([^\"]+)", json.dumps(described)))
    assert names <= set(described["components"]["schemas"])


def test_operation_ids_differ() -> None:
    ids = [operation["operationId"] for methods in document()["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("method", "path", "body", "schema"),
    [
        ("POST", "/v1/embeddings", {"input": ["a", "b " * 50]}, "EmbeddingsAnswer"),
        ("POST", "/v1/embeddings", {"input": "a", "encoding_format": "base64"}, "EmbeddingsAnswer"),
        ("POST", "/v1/embeddings", {"input": 1}, "ErrorAnswer"),
        ("GET", "/v1/models", None, "ModelList"),
        ("GET", "/v1/models/fake/model", None, "ModelEntry"),
        ("GET", "/models", None, "InfinityModels"),
        ("GET", "/info", None, "TeiInfo"),
        ("GET", "/info?model=x", None, "TeiInfo"),
        ("GET", "/nowhere", None, "ErrorAnswer"),
    ],
)
def test_answers_fit_their_schema(client: httpx.Client, method: str, path: str, body: Any, schema: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    description = client.get("/openapi.json").json()
    answer = client.request(method, path, json=body).json()
    jsonschema.validate(answer, {"$ref": f"#/components/schemas/{schema}", **description})
