"""docs/clients.md, from the tests of the clients: `python -m tests.server.client_table > docs/clients.md`."""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

CONSTRAINTS = Path(__file__).parent.parent.parent / "constraints.txt"
MODULES = ("tests.server.test_clients", "tests.server.test_other_clients")
INTRO = """# Clients

What runs, unchanged, against this server in the tests: the client gets its address and no more. Each row is a test in
`tests/server/test_clients.py` or `tests/server/test_other_clients.py`, against a real server on loopback; it passes
only if the client's own objects hold the numbers that the library gives. This page is made from them:
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
- `infinity-client` and `langchain-huggingface` cannot be installed beside the versions that the tests pin; the bodies
  that they send are tested (`tests/server/test_vllm.py`, `tests/server/test_tei.py`), the packages are not.
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
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", CONSTRAINTS.read_text(), re.MULTILINE))


def page() -> str:
    """The whole page."""
    for name in MODULES:
        import_module(name)
    pinned = versions()
    rows = [
        f"| {call.package} | {pinned.get(call.package, 'any')} | {call.calls} | `{call.path}` | works |"
        for call in sorted(set(CALLS))
    ]
    return INTRO + "\n".join(rows) + "\n" + OUTRO


if __name__ == "__main__":
    # The tests note their calls in the imported module, which this one, run, is not.
    sys.stdout.write(import_module("tests.server.client_table").page())
