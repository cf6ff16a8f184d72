"""Starts front-ends, starts anew what has failed, and ends all of them in order."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import uvloop

from rtp_llm.checkpoint import hub
from rtp_llm.config import ServerConfig
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.loading import Reach
from rtp_llm.errors import ConfigError
from rtp_llm.frontends.channel import framed
from rtp_llm.frontends.desk import Desk, problem_of
from rtp_llm.frontends.messages import Orders, Served
from rtp_llm.observability import ProcessMetrics, render
from rtp_llm.server.app import bind_shared

logger = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-m", "rtp_llm.frontends")
_LOOK_EVERY = 0.25  # seconds between two looks at the engines' health
_RESTART_AFTER = 1.0  # seconds
_KILL_AFTER = 5.0  # seconds from the second signal on, or from the failure of a start


class Supervisor:
    """Front-ends of some engines, each with a socket of its own at one address, on the running event loop.

    A front-end that ends by itself takes the clients that it speaks with along; the others go on, and another takes its
    place on its socket. One that ends before it was ever ready is the end of the server.
    """

    def __init__(
        self, engines: Sequence[Engine], config: ServerConfig, process: ProcessMetrics, sockets: Sequence[socket.socket]
    ) -> None:
        self._engines = engines
        self._config = config
        self._process = process
        self._sockets = sockets
        self._loop = asyncio.get_running_loop()
        self._served = [_served(engine) for engine in engines]
        self._desks: set[Desk] = set()
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._num_signals = 0
        self._all_in_order = True
        process.watch_health(self._is_healthy)
        process.watch_frontends(lambda: [one.pid for one in self._running.values()])

    async def run(self, on_ready: Callable[[int], None]) -> bool:
        """Until a signal ends the server -> whether all front-ends have ended in order; ConfigError: one did not start.

        `on_ready` is called once with the port, when all of them accept connections.
        """
        ready = [self._loop.create_future() for _ in self._sockets]
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        for number in numbers:
            self._loop.add_signal_handler(number, self._pass_on, number)
        tasks = [asyncio.ensure_future(self._keep(place, word)) for place, word in enumerate(ready)]
        watch = asyncio.ensure_future(self._watch())
        try:
            await self._await_all(ready, tasks)
            if not self._num_signals:
                on_ready(ready[0].result())
            await asyncio.gather(*tasks)
        finally:
            watch.cancel()
            await self._end(tasks)
            for number in numbers:
                self._loop.remove_signal_handler(number)
        return self._all_in_order

    async def _await_all(self, ready: Sequence["asyncio.Future[int]"], tasks: Sequence["asyncio.Task[None]"]) -> None:
        """Until all are ready, or one will never be."""
        waiting = asyncio.ensure_future(asyncio.wait(ready))
        ended: set[asyncio.Future[Any]] = {waiting, *tasks}
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in tasks:
            if task.done():
                task.result()

    async def _keep(self, place: int, ready: "asyncio.Future[int]") -> None:
        """A front-end at this place, and another where it fails, until the server ends."""
        name = f"front-end {place + 1}"
        while not self._num_signals:
            try:
                status = await self._serve_one(place, name, ready)
                ended = f"has ended with status {status}"
            except OSError as error:  # of a process that cannot be started
                status, ended = 1, f"cannot be started ({error.strerror})"
            if self._num_signals:
                self._all_in_order &= status == 0
                return
            if not ready.done():
                raise ConfigError(f"frontend_server_count: {name} {ended} before it was ready; its log is above")
            logger.error("%s %s; another one takes its place", name, ended)
            self._process.observe_frontend_restart()
            await asyncio.sleep(_RESTART_AFTER)

    async def _serve_one(self, place: int, name: str, ready: "asyncio.Future[int]") -> int:
        """Start a front-end and serve it until it ends -> its status; OSError where it cannot be started."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                process = self._running[place] = await _start(theirs, self._sockets[place])
        except OSError:
            ours.close()
            raise
        desk = Desk(self._engines, self._exposition, partial(_settle, ready), self._process.observe_lost_lines)
        self._desks.add(desk)
        try:
            await self._loop.sock_sendall(ours, framed([self._orders(place, name)]))
            await desk.open(ours)
        except OSError:  # it has ended already
            ours.close()
        try:
            return await process.wait()
        finally:
            self._desks.discard(desk)
            desk.close()
            del self._running[place]

    def _orders(self, place: int, name: str) -> Orders:
        config, count = self._config, len(self._sockets)
        limit = -(-config.concurrency_limit // count)
        grpc_port = 0 if place else config.grpc_port
        return Orders(name, replace(config, concurrency_limit=limit, grpc_port=grpc_port), self._served)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            for desk in tuple(self._desks):
                desk.tell_problems()

    def _pass_on(self, number: int) -> None:
        """A signal to this process is one to all front-ends; the first that ends them ends the server."""
        if number != signal.SIGHUP:
            self._num_signals += 1
            number = signal.SIGTERM
            for listener in self._sockets:  # else it would take connections that nobody accepts
                listener.close()
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)
        if self._num_signals > 1:
            self._loop.call_later(_KILL_AFTER, self._kill)

    async def _end(self, tasks: Sequence["asyncio.Task[None]"]) -> None:
        """End what still runs, where one did not start, or something here has failed."""
        if self._running:
            self._pass_on(signal.SIGTERM)
            self._loop.call_later(_KILL_AFTER, self._kill)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _kill(self) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.kill()

    def _is_healthy(self) -> bool:
        return not self._num_signals and not any(map(problem_of, self._engines))

    def _exposition(self) -> bytes:
        return render(self._process, [engine.metrics for engine in self._engines])


def serve(
    engines: Sequence[Engine], config: ServerConfig, process: ProcessMetrics, on_ready: Callable[[int], None]
) -> bool:
    """Serve by `config.frontend_server_count` front-ends, as `server.app.serve` does by itself; errors as there."""
    sockets = bind_shared(config.host, config.start_port, config.frontend_server_count)

    async def run() -> bool:
        return await Supervisor(engines, config, process, sockets).run(on_ready)

    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()
        for one in sockets:
            one.close()


async def _start(end: socket.socket, listener: socket.socket) -> asyncio.subprocess.Process:
    """A front-end that speaks over `end`, in a session of its own: Ctrl-C reaches it by this process alone."""
    descriptors = end.fileno(), listener.fileno()
    return await asyncio.create_subprocess_exec(
        *_COMMAND, *map(str, descriptors),
        pass_fds=descriptors, stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _served(engine: Engine) -> Served:
    """What a front-end is told of a model. The folder is named, since a hub's branch may move on meanwhile."""
    folder = hub.resolve(engine.config, progress=False)
    config = replace(engine.config, checkpoint_path=str(folder))
    return Served(config, engine.info(), Reach.of(engine.runtime.model))


def _settle(ready: "asyncio.Future[int]", port: int) -> None:
    if not ready.done():  # else it is one that takes another's place
        ready.set_result(port)
