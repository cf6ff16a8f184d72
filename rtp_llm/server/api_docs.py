"""docs/api.md: `python -m rtp_llm.server.api_docs`, from the OpenAPI description."""

import json
import sys
from collections.abc import Iterator
from typing import Any

from rtp_llm.server.errors import openai_form
from rtp_llm.server.openapi import FORMS, document
from rtp_llm.server.openapi_words import ABOUT, ANSWER_HEADERS, ELSEWHERE, FAILURES, REQUEST_HEADERS, SAMPLES, TAGS
from rtp_llm.server.tei import frame

_HEAD = """\
# HTTP API

Generated from the OpenAPI description by `make fix`; the tests send every example to a server. `GET /docs` shows
the same from the running server on `http://HOST:8088` (`--start_port`), `GET /openapi.json` has it for programs
(OpenAPI 3.1), and `GET /` is a page to try the model on. How the dialects share paths, and how they differ from the
originals, is in [dialects.md](dialects.md); [clients.md](clients.md) lists the clients that the tests run.

```bash
curl http://localhost:8088/v1/embeddings -d '{"input": ["a cat sat on the mat", "a dog lay on the rug"]}'
```
"""
_WIDTH = 118
_ONLY = {"empty": frame.error_form, "unknown path": openai_form}  # in this form alone

Group = tuple[dict[str, Any], list[str]]


def api_page() -> str:
    """The page, as it should be."""
    described = document()
    groups = _groups(described["paths"])
    parts = [_HEAD, ABOUT, "", *_index(groups)]
    for tag, text in TAGS.items():
        parts += ["", f"## {tag[0].upper()}{tag[1:]}", "", text]
        for operation, routes in groups:
            if operation["tags"][0] == tag:
                parts += _operation(operation, routes)
    parts += ["", "## Bodies", "", "A field that is not required may be absent or null."]
    parts += _bodies(described)
    return "\n".join([*parts, *_headers(), *_errors()]) + "\n"


def _groups(paths: dict[str, Any]) -> list[Group]:
    """Operations that differ in their route alone are one, with all their routes."""
    groups: dict[str, Group] = {}
    for path, methods in paths.items():
        for method, operation in methods.items():
            same = json.dumps({**operation, "operationId": None}, sort_keys=True)
            groups.setdefault(same, (operation, []))[1].append(f"{method.upper()} {path}")
    return list(groups.values())


def _index(groups: list[Group]) -> Iterator[str]:
    yield from ("| route | what it answers |", "|---|---|")
    for operation, routes in groups:
        yield f"| {_names(routes)} | {operation['summary']} |"


def _names(routes: list[str]) -> str:
    return ", ".join(f"`{route}`" for route in routes)


def _operation(operation: dict[str, Any], routes: list[str]) -> Iterator[str]:
    yield from ("", f"### {operation['summary']}", "", f"{_names(routes)}.")
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        links = [f"[{name}](#{name.lower()})" for name in _referred(body["schema"])]
        yield f"Body: {' or '.join(links)}. Failures: {', '.join(_failing(operation))}."
        for name, example in body["examples"].items():
            yield from ("", f"{name[0].upper()}{name[1:]}:", *_fenced(example["value"]))
    answer = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
    for example in answer.get("examples", {}).values():
        yield from ("", "Answer:" if not body else "Answer to the first:", *_fenced(example["value"]))


def _failing(operation: dict[str, Any]) -> list[str]:
    return [status for status in operation["responses"] if status != "200"]


def _fenced(value: Any) -> tuple[str, ...]:
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > _WIDTH and isinstance(value, dict):
        lines = ",\n ".join(f"{json.dumps(key)}: {json.dumps(one, ensure_ascii=False)}" for key, one in value.items())
        text = f"{{{lines}}}"
    return "", "```json", text, "```"


def _referred(schema: dict[str, Any]) -> list[str]:
    parts = schema.get("anyOf", [schema])
    return [part["$ref"].rsplit("/", 1)[1] for part in parts]


def _bodies(described: dict[str, Any]) -> Iterator[str]:
    schemas = described["components"]["schemas"]
    for name, schema in schemas.items():
        if not name.endswith("Body"):
            continue
        required = schema.get("required", [])
        yield from ("", f"### {name}", "", schema["description"], "", "| field | value | meaning |", "|---|---|---|")
        for field, kind in schema["properties"].items():
            marked = f"`{field}`" + (", required" if field in required else "")
            yield f"| {marked} | {_cell(_brief(kind, schemas))} | {_cell(kind.get('description', ''))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _brief(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A schema as words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        fields = ", ".join(f"`{field}`" for field in schemas[name].get("properties", {}))
        return f"object with {fields}"
    if "anyOf" in schema:
        parts = [_brief(one, schemas) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of {_brief(items, schemas)}" if items else "list"
    return str(schema.get("type", "anything"))


def _headers() -> Iterator[str]:
    yield from ("", "## Headers", "", "| header | of | meaning |", "|---|---|---|")
    yield "| `Authorization` | requests | `Bearer KEY`, or `x-api-key`, or `api-key`: [safety.md](safety.md) |"
    yield from (f"| `{name}` | requests | {text} |" for name, text in REQUEST_HEADERS.items())
    yield from (f"| `{name}` | answers | {text} |" for name, text in ANSWER_HEADERS.items() if name != "X-Request-Id")
    yield "| `Access-Control-*` | answers | any origin may call (`cors_origins`), preflight included |"


def _errors() -> Iterator[str]:
    yield from ("", "## Errors", "", "| status | meaning |", "|---|---|")
    yield from (f"| {status} | {text} |" for status, text in FAILURES.items())
    yield from (
        "",
        "Each dialect tells of them in its own form. `GET` routes, and paths that are not served, use the first, but",
        "for those of TEI, Ollama and Weaviate; what is no HTTP request at all does too (400, and 431 for a head over",
        "the limit).",
    )
    for form, type_ in FORMS.items():
        yield from (
            "",
            f"### {type_.__name__}",
            "",
            type_.__doc__ or "",
            "",
            "| what | status | body |",
            "|---|---|---|",
        )
        for name, error in (SAMPLES | ELSEWHERE).items():
            if _ONLY.get(name, form) is form:
                status, body = form(error)
                yield f"| {name} | {status} | `` {_cell(body.decode())} `` |"


if __name__ == "__main__":
    sys.stdout.write(api_page())
