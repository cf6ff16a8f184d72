"""A real Prometheus scrapes a real server, and evaluates every rule and every panel of the dashboard."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from rtp_llm.observability.page import described
from tests.deploy.files import DEPLOY, panels, rules
from tests.real_server import Running, free_port, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("promtool"), reason="Prometheus is not installed (apt install prometheus)"),
]

# What shows something only when something goes wrong, or is switched on.
_OFTEN_EMPTY = {"Result cache: hits", "Refused, expired, left"}


class Scraped(NamedTuple):
    server: Running
    prometheus: str

    def ask(self, expression: str) -> Any:
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression}, trust_env=False).json()
        assert answer["status"] == "success", (expression, answer)
        return answer["data"]["result"]


def send(url: str) -> None:
    for number in range(20):
        httpx.post(f"{url}/v1/embeddings", json={"input": [f"the weather {number}"] * 2}, trust_env=False)
    httpx.post(f"{url}/v1/embeddings", json={}, trust_env=False)


@pytest.fixture(scope="module")
def scraped(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    folder, port, own = tmp_path_factory.mktemp("prometheus"), free_port(), free_port()
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    text = text.replace("15s", "1s").replace("rtp-llm:8088", f"127.0.0.1:{port}")
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(DEPLOY / "prometheus" / "rules.yml", folder)
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with running([str(tiny_bert), "--port", str(port), "--result_cache_mb", "1"], folder / "log", port) as server:
        send(server.url)
        listen = f"--web.listen-address=127.0.0.1:{own}"
        with (folder / "prometheus.log").open("wb") as log:
            child = subprocess.Popen([*command, listen], stderr=log, cwd=folder)
        try:
            one = Scraped(server, f"http://127.0.0.1:{own}")
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                time.sleep(0.5)
                send(server.url)
            yield one
        finally:
            child.terminate()
            child.wait(20)


def test_promtool_takes_the_exposition(scraped: Scraped) -> None:
    text = httpx.get(f"{scraped.server.url}/metrics", trust_env=False).content
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", DEPLOY / "prometheus" / "rules.yml"], check=False)
    assert done.returncode == 0


def test_every_metric_is_scraped(scraped: Scraped) -> None:
    kinds = {"histogram": "_count", "counter": "", "gauge": ""}
    missing = [one.name for one in described() if not scraped.ask(f"{one.name}{kinds[one.kind]}")]
    # A counter with labels appears when it first counts.
    assert set(missing) <= {"rtp_llm_refused_requests_total", "rtp_llm_failed_requests_total"}


@pytest.mark.parametrize("name", rules())
def test_no_alert_on_a_server_that_is_well(scraped: Scraped, name: str) -> None:
    assert scraped.ask(rules()[name]) == []


@pytest.mark.parametrize(("title", "expression"), list(panels()))
def test_every_panel_shows_something(scraped: Scraped, title: str, expression: str) -> None:
    result = scraped.ask(expression)
    assert result or title in _OFTEN_EMPTY or title.startswith(("Failed", "Refused"))
