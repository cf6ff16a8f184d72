"""The log: its lines in text and JSON, which requests have one, what they never show, and where they may be lost."""

import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Request, Response, TaskType
from rtp_llm.observability import Answered, Seen, log_output
from rtp_llm.observability.log_output import LogOutput
from rtp_llm.observability.logs import JsonLines, RequestLog
from rtp_llm.timings import Timings
from tests.server.conftest import wait_until


def seen(request_id: str = "r-1", status: int = 200, text: str = "private words", **changes: Any) -> Seen:
    response = Response(
        outputs={TaskType.DENSE: np.zeros((1, 2), np.float32)},
        num_tokens=[5],
        truncated=[True],
        timings=Timings(tokenize=0.001, queue=0.002, compute=0.003, total=0.006),
    )
    answered = [Answered(Request(inputs=[text]), response, "mini", 0.0005)] if status == 200 else []
    given = {"method": "POST", "route": "/v1/embeddings", "started_at": 1.0, "seconds": 0.007, **changes}
    return Seen(request_id=request_id, status=status, answered=answered, **given)


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "rtp_llm.requests"]


def test_a_request_in_text(caplog: pytest.LogCaptureFixture) -> None:
    RequestLog(1.0).observe(seen())
    (record,) = lines(caplog)
    assert record.getMessage() == (
        "POST /v1/embeddings 200 in 7.0 ms (tokenize 1.0, queue 2.0, compute 3.0, encode 0.5), 1 inputs, 5 tokens, "
        "request r-1"
    )


def test_a_request_in_json(caplog: pytest.LogCaptureFixture) -> None:
    trace = "0123456789abcdef" * 2
    RequestLog(1.0).observe(seen(headers={b"traceparent": f"00-{trace}-{'1' * 16}-01".encode()}))
    line = json.loads(JsonLines().format(lines(caplog)[0]))
    times = {"tokenize": 1.0, "queue": 2.0, "compute": 3.0, "encode": 0.5, "total": 7.0}
    assert (line["route"], line["status"], line["milliseconds"]) == ("/v1/embeddings", 200, times)
    assert (line["request_id"], line["trace_id"], line["tokens"], line["truncated"]) == ("r-1", trace, 5, 1)
    assert line["level"] == "info" and line["time"].endswith("+00:00")


@pytest.mark.parametrize("with_texts", [False, True])
def test_texts_are_shown_only_where_asked(caplog: pytest.LogCaptureFixture, with_texts: bool) -> None:
    RequestLog(1.0, with_texts=with_texts).observe(seen(text="private words" + "x" * 9999))
    line = JsonLines().format(lines(caplog)[0])
    assert ("private words" in line) == with_texts and len(line) < 2000
    assert ("private words" in lines(caplog)[0].getMessage()) == with_texts


def test_a_share_of_the_requests_and_every_failure(caplog: pytest.LogCaptureFixture) -> None:
    log = RequestLog(0.25)
    for number in range(400):
        log.observe(seen(f"r-{number}"))
    assert 60 < len(lines(caplog)) < 140
    caplog.clear()
    again = RequestLog(0.25)
    for status, failure in ((400, ""), (424, ""), (424, "engine_failure"), (429, ""), (503, "not_ready")):
        again.observe(seen("r-0", status, failure=failure))
    assert [record.args[2] for record in lines(caplog) if isinstance(record.args, tuple)] == [424, 503]


def test_json_lines_are_one_line_whatever_is_said() -> None:
    try:
        raise ValueError("two\nlines \ud800")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "odd %s\n", (b"\xff",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line and "ValueError" in json.loads(line)["exception"]


@contextlib.contextmanager
def output_to(descriptor: int) -> Iterator[tuple[LogOutput, logging.Logger, list[int]]]:
    output, logger, lost = LogOutput(descriptor), logging.Logger("of a test"), list[int]()
    output.on_lost = lost.append
    logger.addHandler(output)
    yield output, logger, lost
    output.flush()


def test_all_is_written_in_order(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file, output_to(file.fileno()) as (output, logger, lost):

        def write_lines() -> None:
            for _ in range(500):
                logger.info("line")

        threads = [threading.Thread(target=write_lines) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        logger.info("last %s", "\ud800")
        output.flush()
        written = (tmp_path / "log").read_text().splitlines()
    assert (written, lost) == (["line"] * 2000 + ["last \\ud800"], [])


def test_a_record_that_cannot_be_formatted(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file, output_to(file.fileno()) as (output, logger, _):
        logger.info("%d", "no number")
        output.flush()
    assert "could not be formatted" in (tmp_path / "log").read_text()


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    with open("/dev/full", "wb", buffering=0) as full, output_to(full.fileno()) as (output, logger, lost):
        logger.info("one")
        output.flush()
        logger.info("two")
        output.flush()
    assert sum(lost) == 2


def test_whatever_is_raised_the_thread_writes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, data: bytes) -> int:
        raise MemoryError

    with (tmp_path / "log").open("wb") as file, output_to(file.fileno()) as (output, logger, lost):
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", fail)
            logger.info("one")
            output.flush()
        output.on_lost = None  # type: ignore[assignment]
        output.emit(logging.makeLogRecord({"msg": "two"}))
        output.flush()
    assert (tmp_path / "log").read_text() == "two\n" and lost == [1]


def test_a_closed_pipe_costs_lines_and_nothing_else() -> None:
    read, write = os.pipe()
    os.close(read)
    with output_to(write) as (output, logger, lost):
        logger.info("one")
        output.flush()
    os.close(write)
    assert sum(lost) == 1


def test_a_reader_that_does_not_read_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_output, "MAX_WAITING_BYTES", 1 << 20)
    monkeypatch.setattr(log_output, "_PATIENCE", 0.05)
    read, write = os.pipe()
    with output_to(write) as (output, logger, lost):
        for _ in range(2000):
            logger.info("x" * 1000)
        output.flush()
        assert 500 < sum(lost) < 1500
        os.close(read)
        wait_until(lambda: not output._writing)
    os.close(write)
