"""The documentation is true: its commands run, its links lead somewhere, its generated pages are current."""

import gc
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtp_llm.flags import flags_page
from rtp_llm.observability.page import metrics_page
from rtp_llm.server.api_docs import api_page
from tests.real_server import ROOT, Running, free_port, running

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(language, code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (language, code) in enumerate(FENCE.findall(page.read_text()))
]


@pytest.fixture(scope="module")
def server(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    port = free_port()
    arguments = [str(minilm), "--port", str(port), "--served_model_name", "all-MiniLM-L6-v2"]
    with running(arguments, tmp_path_factory.mktemp("log") / "log", port) as server:
        yield server


@pytest.mark.parametrize(("language", "code"), EXAMPLES)
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*unclosed|.*socket:pytest.PytestUnraisableExceptionWarning")
def test_examples_run(language: str, code: str, server: Running, minilm: Path, tmp_path: Path) -> None:
    code = code.replace("http://localhost:8088", server.url).replace("/models/all-MiniLM-L6-v2", str(minilm))
    code = code.replace('"examples/', f'"{ROOT}/examples/')
    if language == "bash":
        command = f'set -euo pipefail; curl() {{ command curl --fail-with-body -sS "$@"; }}\n{code}'
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        exec(compile(code, "example", "exec"), {"__name__": "example"})
        # Examples leave their clients open; what that leaves behind is not to surface in a later test.
        gc.collect()


def test_flags_page_is_current() -> None:
    assert (ROOT / "docs" / "flags.md").read_text() == flags_page(), "make fix"


def test_metrics_page_is_current() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page(), "make fix"


def test_api_page_is_current() -> None:
    assert (ROOT / "docs" / "api.md").read_text() == api_page(), "make fix"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_readme_tree_names_every_part() -> None:
    tree = (ROOT / "README.md").read_text().rpartition("```\nrtp_llm/\n")[2]
    parts = [path.name for path in (ROOT / "rtp_llm").iterdir() if not path.name.startswith(("_", "py.typed"))]
    assert not [part for part in parts if part not in tree]


@pytest.mark.parametrize("target", ["serve", "test"])
def test_readme_shows_the_two_commands(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
