"""API keys over HTTP: who gets in, what stays open, and the file that is read again."""

import asyncio
import base64
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError, Unauthorized
from rtp_llm.server import auth, create_app
from rtp_llm.server.auth import KeyRing
from rtp_llm.server.dispatch import DIALECTS
from tests.server.fake_engine import FakeEngine

KEYS = ("first-key", "second-key")
BODY = {"input": "a"}


def ask(config: ServerConfig, method: str, path: str, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(FakeEngine(), config))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def guarded(**options: Any) -> ServerConfig:
    return ServerConfig(checkpoint_path="fake", api_key=KEYS, **options)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer  second-key"},
        {"x-api-key": "second-key"},
        {"api-key": "first-key"},
        {"authorization": "Basic " + base64.b64encode(b"anybody:second-key").decode()},
        {"authorization": "basic " + base64.b64encode(b":first-key").decode()},
    ],
)
def test_a_key_opens(headers: dict[str, str]) -> None:
    assert ask(guarded(), "POST", "/v1/embeddings", json=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer third-key"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"authorization": "Basic " + base64.b64encode(b"first-key").decode()},
        {"authorization": "Basic " + base64.b64encode(b"first-key:wrong").decode()},
        {"authorization": "Basic Z:Z"},
        {"authorization": "Bearer first-ke"},
        {"authorization": "Bearer first-key second-key"},
        {"x-api-key": ""},
        {"authorization": "Bearer wrong", "x-api-key": "first-ke", "api-key": "second-ke"},
    ],
)
def test_anything_else_does_not(headers: dict[str, str]) -> None:
    answer = ask(guarded(), "POST", "/v1/embeddings", json=BODY, headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="rtp-llm"')
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert "x-request-id" in answer.headers and not any(key in answer.text for key in KEYS)


GUARDED = [
    *(("POST", path) for path in DIALECTS), ("POST", "/tokenize"), ("GET", "/metrics"), ("GET", "/v1/models"),
    ("GET", "/v1/models/fake/model"), ("POST", "/"), ("GET", "/nowhere"), ("GET", "/metrics/"),
    ("GET", "/health/../metrics"), ("PUT", "/docs"),
]  # fmt: skip
PROBES = sorted(auth.OPEN_PROBES - {"/ping"})  # one order in every process that collects the tests
OPEN = [("GET", path) for path in (*PROBES, *sorted(auth.OPEN_PAGES), "/health/")] + [("POST", "/health")]


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_guarded(method: str, path: str) -> None:
    assert ask(guarded(), method, path).status_code == 401


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_open(method: str, path: str) -> None:
    assert ask(guarded(), method, path).status_code == (204 if ".well-known" in path else 200)


def test_a_preflight_carries_no_key() -> None:
    assert ask(guarded(), "OPTIONS", "/v1/embeddings", headers={"origin": "http://a.example"}).status_code == 204


def check(ring: KeyRing, key: str) -> bool:
    try:
        ring.check_key({b"x-api-key": key.encode()})
    except Unauthorized:
        return False
    return True


@pytest.fixture
def ring_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[KeyRing, Path]]:
    monkeypatch.setattr(auth, "_LOOK_AGAIN", 0.0)

    def make(text: str) -> tuple[KeyRing, Path]:
        path = tmp_path / "keys"
        path.write_text(text)
        return KeyRing(ServerConfig(checkpoint_path="fake", api_key_file=str(path), api_key=("fixed",))), path

    return make


def test_a_file_is_read_again_when_it_changes(ring_of: Callable[[str], tuple[KeyRing, Path]]) -> None:
    ring, path = ring_of("# team a\nk1\n\n  k2  \n")
    assert [check(ring, key) for key in ("k1", "k2", "fixed", "# team a", "")] == [True, True, True, False, False]
    path.write_text("k3-new\n")
    assert [check(ring, key) for key in ("k1", "k3-new", "fixed")] == [False, True, True]
    replacement = path.with_name("new")
    replacement.write_text("k4\n")
    os.replace(replacement, path)
    assert [check(ring, key) for key in ("k3-new", "k4")] == [False, True]


@pytest.mark.parametrize("broken", ["", "# none\n", "with space\n", "ключ\n", b"\xff\xfe\n", None])
def test_a_file_that_breaks_later_changes_nothing(
    ring_of: Callable[[str], tuple[KeyRing, Path]], caplog: pytest.LogCaptureFixture, broken: Any
) -> None:
    ring, path = ring_of("k1\n")
    if broken is None:
        path.unlink()
    else:
        path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    assert check(ring, "k1") and not check(ring, "k2")
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    assert "ключ" not in caplog.text


def test_a_file_that_could_not_be_read_is_read_when_it_can_be(
    ring_of: Callable[[str], tuple[KeyRing, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is written first and given to the server's user then, by which its date does not change."""

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    ring, path = ring_of("k1\n")
    path.write_text("k2-new\n")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", denied)
        assert check(ring, "k1") and not check(ring, "k2-new")
    assert check(ring, "k2-new") and not check(ring, "k1")


def test_a_file_of_keys_has_an_end(tmp_path: Path) -> None:
    """A pipe has none, or nothing for the second who reads it."""
    path = tmp_path / "keys"
    for content, message in (("", "holds no key"), ("k\n" * (1 << 20), "over 1048576 bytes")):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            KeyRing(ServerConfig(checkpoint_path="fake", api_key_file=str(path)))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="cannot be read: it is no regular file"):
        KeyRing(ServerConfig(checkpoint_path="fake", api_key_file=str(path)))


def test_sighup_reads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("k1\n")
    ring = KeyRing(ServerConfig(checkpoint_path="fake", api_key_file=str(path)))
    path.write_text("k2\n")
    ring.reload()
    assert check(ring, "k2") and not check(ring, "k1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key": ("a b",)}, "api_key: a key may have visible ASCII"),
        ({"api_key_file": "/nowhere/at/all"}, "api_key_file: /nowhere/at/all cannot be read"),
        ({"api_key_file": os.devnull}, "it is no regular file"),
        ({"api_key_file": "/dev/zero"}, "it is no regular file"),
    ],
)
def test_keys_that_cannot_be_started_with(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KeyRing(ServerConfig(checkpoint_path="fake", **options))


def test_keys_stay_out_of_repr() -> None:
    assert "first-key" not in repr(guarded())


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        (("*",), "http://a.example", "*"),
        (("http://a.example", "http://b.example/"), "http://b.example", "http://b.example"),
        (("http://a.example",), "http://c.example", None),
        (("none",), "http://a.example", None),
    ],
)
def test_cors_origins(origins: tuple[str, ...], origin: str, allowed: str | None) -> None:
    config = ServerConfig(checkpoint_path="fake", cors_origins=origins)
    for method, path in (("GET", "/health"), ("POST", "/v1/embeddings"), ("OPTIONS", "/v1/embeddings")):
        headers = ask(config, method, path, headers={"origin": origin}).headers
        assert headers.get("access-control-allow-origin") == allowed
        assert (headers.get("vary") == "origin") == (origins != ("*",))
