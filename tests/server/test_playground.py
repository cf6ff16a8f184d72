"""The pages in a real browser: they work, at a phone's width and a laptop's, in light and dark, with no other host."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.core import TaskType
from tests.server.conftest import CONFIG, Address, running_server
from tests.server.fake_engine import FakeEngine

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZES = {"phone": (360, 740), "laptop": (1280, 800)}

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def page(request: pytest.FixtureRequest, browser: Any, address: Address, engine: FakeEngine) -> Iterator[Any]:
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.extend([message.text] if message.type == "error" else []))
    page.on("request", lambda r: problems.extend([] if r.url.startswith((address.url, "data:")) else [r.url]))
    page.problems = problems
    yield page
    folder = os.environ.get("RTP_LLM_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{request.node.name}.png", full_page=True)
    context.close()


def fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def test_compares_the_examples(page: Any, address: Address) -> None:
    page.goto(address.url)
    page.wait_for_selector("#heat td")
    assert page.inner_text("#model") == "fake/model"
    assert "8 dimensions" in page.inner_text("#facts")
    assert page.locator("#heat tbody tr").count() == 6
    assert page.locator("#heat td.self").first.inner_text() == "1.00"
    assert "Compute\n3.00 ms" in page.inner_text("#numbers")
    assert fits(page)
    assert page.problems == []


def test_own_texts_and_their_curl(page: Any, address: Address, engine: FakeEngine) -> None:
    page.goto(address.url)
    page.get_by_label("Texts, one a line").fill("it's one\n\n  two  \n")
    page.get_by_role("button", name="Compare").click()
    sync_api.expect(page.locator("#heat td")).to_have_count(4)
    assert list(engine.requests[-1].inputs) == ["it's one", "two"]
    assert r"""-d '{"input":["it'\''s one","two"]}'""" in page.inner_text("#curl")
    assert page.problems == []


def test_one_of_several_models_is_chosen(browser: Any) -> None:
    kinds = {"first": TaskType.DENSE, "ranker": TaskType.RERANK, "second": TaskType.DENSE}
    engines = [FakeEngine(name=name, tasks=(task,)) for name, task in kinds.items()]
    with running_server(engines) as several:
        page = browser.new_page()
        page.goto(several.url)
        page.wait_for_selector("#heat td")
        assert page.inner_text("#model") == "first" and page.locator("#choice option").count() == 2
        page.get_by_label("Model").select_option("second")
        sync_api.expect(page.locator("#model")).to_have_text("second")
        assert '"model":"second"' in page.inner_text("#curl") and engines[2].requests and fits(page)
        page.close()


def test_failure_is_shown(page: Any, address: Address, engine: FakeEngine) -> None:
    page.goto(address.url)
    page.wait_for_selector("#heat td")
    engine.error = ValueError("secret")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector("#error p")
    assert "its log tells why" in page.inner_text("#error")
    assert not page.is_visible("#result")
    assert fits(page)


def test_asks_for_the_key(browser: Any, engine: FakeEngine) -> None:
    with running_server(engine, replace(CONFIG, api_key=("the-key",))) as guarded:
        page = browser.new_page()
        page.goto(guarded.url)
        page.get_by_label("API key").fill("the-key")
        assert "Authorization: Bearer YOUR_KEY" in page.inner_text("#curl")
        page.get_by_role("button", name="Compare").click()
        page.wait_for_selector("#heat td")
        assert page.inner_text("#model") == "fake/model" and fits(page)
        page.close()


def test_no_text_is_explained(page: Any, address: Address) -> None:
    page.goto(address.url)
    page.wait_for_selector("#heat td")
    page.get_by_label("Texts, one a line").fill("\n \n")
    page.keyboard.press("Control+Enter")
    assert page.inner_text("#error") == "Write at least one line of text."


def test_docs(page: Any, address: Address) -> None:
    page.goto(f"{address.url}/docs")
    page.wait_for_selector("details")
    page.locator("summary", has_text="/v1/embeddings").first.click()
    assert "EmbeddingsBody" in page.locator("details[open]").first.inner_text()
    assert page.locator("#schema-EmbeddingsBody").is_visible()
    assert fits(page)
    assert page.problems == []
