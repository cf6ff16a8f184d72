"""The limit of open files: raised where that is allowed, and lived with where it is not."""

import logging
from typing import Any

import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError
from rtp_llm.server.open_files import allow_open_files

resource: Any = pytest.importorskip("resource")
CONFIG = ServerConfig(checkpoint_path="fake", concurrency_limit=1024)


class Limits:
    """Of a system: `refusal` is what it says to a change."""

    def __init__(self, soft: int, hard: int, refusal: Exception | None, patch: pytest.MonkeyPatch) -> None:
        self.now, self.refusal = (soft, hard), refusal
        patch.setattr(resource, "getrlimit", lambda _: self.now)
        patch.setattr(resource, "setrlimit", self.change)

    def change(self, _: int, limits: tuple[int, int]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.now = limits


def test_as_many_as_may_be(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(1024, 4096, None, monkeypatch)
    allow_open_files(CONFIG)
    assert limits.now == (4096, 4096) and not caplog.records


@pytest.mark.parametrize("refusal", [ValueError("current limit exceeds maximum limit"), PermissionError("not here")])
@pytest.mark.parametrize("hard", [4096, resource.RLIM_INFINITY])
def test_a_system_that_changes_no_limit_is_served_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refusal: Exception, hard: int
) -> None:
    Limits(256, hard, refusal, monkeypatch)
    with caplog.at_level(logging.WARNING):
        allow_open_files(CONFIG)
    assert "this process may open 256 files, and concurrency_limit is 1024" in caplog.text


def test_too_few_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(20, 20, None, monkeypatch)
    with pytest.raises(ConfigError, match="may open 20 files, and needs 64 at least"):
        allow_open_files(CONFIG)
