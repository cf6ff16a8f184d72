"""docs/clients.md, from the tests of the clients: `python -m tests.server.client_table > docs/clients.md`."""

import json
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).parent.parent
CONSTRAINTS = TESTS.parent / "constraints.txt"
REQUIREMENTS, PACKAGES = TESTS / "clients" / "requirements.txt", TESTS / "clients" / "package.json"
MODULES = ("tests.server.test_clients", "tests.server.test_other_clients", "tests.clients.test_apart")
INTRO = """# Clients

What runs, unchanged, against this server in the tests: the client gets its address and no more. Each row is a test in
`tests/server/test_clients.py`, `tests/server/test_other_clients.py` or, for clients that need an environment of their
own (`make clients`), `tests/clients/test_apart.py`, against a real server on loopback; it passes only if the client's
own objects hold the numbers that the library gives. This page is made from them:
`python -m tests.server.client_table > docs/clients.md`.

| client | version | calls | path | result |
|---|---|---|---|---|
"""
OUTRO = """
## Needs an option, or does not work

- LangChain's `OpenAIEmbeddings` sends ids of OpenAI's tokenizer; they are refused, with the way out:
  `check_embedding_ctx_length=False`.
- LiteLLM's `infinity/` provider wants documents in answers to a rerank as strings, its `hosted_vllm/` and `cohere/` as
  objects, for the same body. They are objects: with `infinity/`, send `return_documents=False`, or use `hosted_vllm/`.
- LiteLLM's `huggingface/` provider asks the hub what the model is for, unless it is told: `input_type="embed"`.
- `infinity-client`: documents in a rerank's answer are objects, which it reads as strings.
- `@huggingface/inference`'s `textClassification` reads a list of lists, which Hugging Face's own API sends and TEI does
  not. It is sent where the body has `parameters`: give the call `parameters: {}`.
- `langchain-huggingface` from 1.2.2 on refuses any address in `HuggingFaceEndpointEmbeddings(model=…)`, whatever server
  is there; 1.2.1 is what is tested.
"""


class Call(NamedTuple):
    """One row of the table: a package, what is called, and the path that it posts to."""

    package: str
    calls: str
    path: str


CALLS: list[Call] = []


def shows(package: str, calls: str, path: str) -> Callable[[Any], Any]:
    """Note that a test shows these calls of a package."""
    CALLS.append(Call(package, calls, path))
    return lambda test: test


def versions() -> dict[str, str]:
    """The versions that the tests run with, by package."""
    pins = "\n".join(file.read_text() for file in (REQUIREMENTS, CONSTRAINTS))  # where both have one, the latter
    node = {f"{name} (node)": version for name, version in json.loads(PACKAGES.read_text())["dependencies"].items()}
    return node | dict(re.findall(r"^([\w-]+)==([\w.]+)", pins, re.MULTILINE))


def page() -> str:
    """The whole page."""
    for name in MODULES:
        import_module(name)
    pinned = versions()
    rows = [
        f"| {call.package} | {pinned[call.package]} | {call.calls} | `{call.path}` | works |"
        for call in sorted(set(CALLS))
    ]
    return INTRO + "\n".join(rows) + "\n" + OUTRO


if __name__ == "__main__":
    # The tests note their calls in the imported module, which this one, run, is not.
    sys.stdout.write(import_module("tests.server.client_table").page())
