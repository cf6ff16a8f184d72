"""The log: one line a record, as text or as JSON, and at most one line a request."""

import json
import logging
import zlib
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from rtp_llm.core import Input
from rtp_llm.observability.log_output import LogOutput
from rtp_llm.observability.seen import STAGES, Seen, stages

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_REQUESTS = "rtp_llm.requests"
_LINE = "%s %s %d in %s ms (%s), %d inputs, %d tokens, request %s%s"
_MAX_TEXTS, _MAX_CHARACTERS = 8, 200  # what a line shows of the inputs, where it may
_ALL = 1 << 32  # one more than crc32 gives
_STANDARD_ERROR = 2


def set_up(descriptor: int = _STANDARD_ERROR) -> LogOutput:
    """Send the log of the whole process to a descriptor, as text."""
    output = LogOutput(descriptor)
    output.setFormatter(logging.Formatter(_TEXT))
    root = logging.getLogger()
    root.addHandler(output)
    root.setLevel(logging.INFO)
    for library in ("httpx", "httpx2"):  # which log each call to the hub
        logging.getLogger(library).setLevel(logging.WARNING)
    return output


def adjust(output: LogOutput, level: str, format: str, process: str = "") -> None:
    """What the options say of the log; `process` is this one's name, where a server has several."""
    logging.getLogger().setLevel(level.upper())
    if format == "json":
        output.setFormatter(JsonLines(process))
    elif process:
        output.setFormatter(logging.Formatter(_TEXT.replace("%(name)s", f"{process} %(name)s")))


class JsonLines(logging.Formatter):
    """A record as a JSON object in one line; `fields` of the record stand beside its message."""

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        """time, level, logger and message; exception where there is one, and the process's name, if it has one."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # NOTE: not orjson, which refuses the half of a surrogate pair that an exception may show.
        return json.dumps(line, default=repr)


class RequestLog:
    """A line for each request of a share of them, chosen by its id: so all servers that a request passes choose alike.

    share       0.0 to 1.0; a request that was in order and failed always has its line
    with_texts  the line shows the beginning of the inputs
    """

    def __init__(self, share: float, *, with_texts: bool = False) -> None:
        self._least = share * _ALL
        self._with_texts = with_texts
        self._logger = logging.getLogger(_REQUESTS)
        self._logger.setLevel(logging.INFO)  # whatever log_level is: they have been asked for

    def observe(self, seen: Seen) -> None:
        """Write the request's line if it has one."""
        if not seen.failure and zlib.crc32(seen.request_id.encode()) >= self._least:
            return
        times = zip(STAGES[:-1], stages(seen.answered), strict=False) if seen.answered else ()
        milliseconds = {name: round(seconds * 1e3, 3) for name, seconds in times}
        fields: dict[str, Any] = {
            "request_id": seen.request_id,
            "method": seen.method,
            "route": seen.route,
            "status": seen.status,
            "milliseconds": {**milliseconds, "total": round(seen.seconds * 1e3, 3)},
            "inputs": seen.num_inputs,
            "tokens": seen.num_tokens,
            "truncated": seen.num_truncated,
            "model": seen.model,
        }
        if seen.trace_id:
            fields["trace_id"] = seen.trace_id
        if self._with_texts:
            fields["texts"] = _beginnings([value for one in seen.answered for value in one.request.inputs])
        # NOTE: made by hand, since `info` looks for the line of code it is called from, which costs 8 us.
        own, told = self._logger.name, {"fields": fields}
        self._logger.handle(
            self._logger.makeRecord(own, logging.INFO, "", 0, _LINE, _arguments(fields), None, extra=told)
        )


def _arguments(fields: dict[str, Any]) -> tuple[object, ...]:
    times = dict(fields["milliseconds"])
    total = times.pop("total")
    told = ", ".join(f"{name} {value}" for name, value in times.items()) or "no model run"
    texts = f": {json.dumps(fields['texts'], ensure_ascii=False)}" if "texts" in fields else ""
    counts = (fields["inputs"], fields["tokens"])
    return (fields["method"], fields["route"], fields["status"], total, told, *counts, fields["request_id"], texts)


def _beginnings(inputs: Sequence[Input]) -> list[Any]:
    return [_beginning(value) for value in inputs[:_MAX_TEXTS]]


def _beginning(value: Input) -> Any:
    return [part[:_MAX_CHARACTERS] for part in value] if isinstance(value, tuple) else value[:_MAX_CHARACTERS]
