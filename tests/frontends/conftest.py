"""An engine with a fake runtime, and the same engine as a front-end has it, in one process."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

from rtp_llm.engine.engine import Engine
from rtp_llm.frontends.desk import Desk
from rtp_llm.frontends.link import Link
from rtp_llm.frontends.remote_engine import RemoteEngine
from rtp_llm.observability import ProcessMetrics, render

Result = TypeVar("Result")


def on_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` comes to, on an event loop of the kind that serves."""
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@dataclass
class Linked:
    """Both ends, and what they have told."""

    engines: list[Engine]
    remotes: list[RemoteEngine]
    desk: Desk
    link: Link
    readies: list[str] = field(default_factory=list)
    lines_lost: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return self.engines[0]

    @property
    def remote(self) -> RemoteEngine:
        return self.remotes[0]

    def value(self, name: str, **labels: str) -> float:
        """A sample of the first engine's metrics."""
        return self.engine.metrics.registry.get_sample_value(f"rtp_llm_{name}", labels) or 0.0


@asynccontextmanager
async def linked(*engines: Engine) -> AsyncIterator[Linked]:
    """The engines behind a pair of sockets, on the running event loop."""
    ours, theirs = socket.socketpair()
    process, told = ProcessMetrics(), list[Linked]()

    async def exposition() -> bytes:
        return render(process, [engine.metrics for engine in engines])

    desk = Desk(
        engines,
        exposition,
        lambda: told[0].readies.append("ready"),
        lambda count: told[0].lines_lost.append(count),
    )
    link = Link(theirs, len(engines), 1)
    remotes = [RemoteEngine(number, one.info(), one._tokenizer, link) for number, one in enumerate(engines)]
    told.append(Linked(list(engines), remotes, desk, link))
    await desk.open(ours)
    await link.open(lambda: told[0].ends.append("end"), lambda: told[0].ends.append("reload"))
    try:
        yield told[0]
    finally:
        await link.close()
        desk.close()


async def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait, on the event loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.002)
