"""Starts front-ends, starts anew what has failed, and ends all of them in order."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import uvloop

from rtp_llm.checkpoint import hub
from rtp_llm.child_process import command_of
from rtp_llm.config import ServerConfig
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.loading import Reach
from rtp_llm.errors import ConfigError, EngineFailure
from rtp_llm.frontends.channel import framed
from rtp_llm.frontends.desk import Desk, problem_of
from rtp_llm.frontends.messages import Orders, Served
from rtp_llm.observability import ProcessMetrics, render
from rtp_llm.runtime.cores import usable_cores
from rtp_llm.server.app import seconds_to_end
from rtp_llm.server.listening import listen_shared, share, unbound

logger = logging.getLogger(__name__)

_COMMAND = command_of("rtp_llm.frontends.__main__")
_LOOK_EVERY = 0.25  # seconds between two looks at the engines' health, and at that of front-ends
_SILENT_LOOKS = 120  # after which a front-end that has not answered is taken to hang
_RESTART_AFTER = 1.0  # seconds, and twice as many after each that has failed before it was ready
_LONGEST_PAUSE = 30.0  # seconds
_KILL_AFTER = 5.0  # seconds from the second signal on, or from the failure of a start
_CLOSING = 30.0  # seconds beyond those that a front-end gives its requests
_CATCH_UP = 0.5  # seconds in which front-ends can tell whoever asks for the metrics what they have counted just now


@dataclass
class _FrontEnd:
    """A process that runs, and where it is served."""

    name: str
    process: asyncio.subprocess.Process
    desk: Desk | None = None
    is_ready: bool = False

    def kill(self, why: str) -> None:
        """End it, unless it has ended meanwhile."""
        logger.error("%s %s, and is killed", self.name, why)
        with suppress(ProcessLookupError):
            self.process.kill()


class Supervisor:
    """Front-ends of some engines, each with a socket of its own at one address, on the running event loop.

    The `sockets` are at no address until all front-ends could serve: then they listen, which is told, and then
    connections are accepted.
    A front-end that ends by itself takes the clients that it speaks with along; the others go on, and another takes its
    place on its socket. Where that one fails to start, the socket is closed, so that its connections go to the others,
    until one starts on a new socket. One that ends before its place was ever ready is the end of the server, and so it
    is when none can be replaced.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        config: ServerConfig,
        process: ProcessMetrics,
        sockets: list[socket.socket],
    ) -> None:
        self._engines = engines
        self._config = config
        self._process = process
        self._sockets = sockets
        self._loop = asyncio.get_running_loop()
        self._served = [_served(engine) for engine in engines]
        self._running: dict[int, _FrontEnd] = {}
        self._failing: set[int] = set()
        self._address: tuple[Any, ...] | None = None  # until the sockets listen
        self._ending = asyncio.Event()
        self._num_signals = 0
        self._all_in_order = True
        process.watch_health(self._is_healthy)
        process.watch_frontends(lambda: [one.process.pid for one in self._running.values()])

    async def run(self, on_ready: Callable[[int], None]) -> bool:
        """Until a signal ends the server -> whether all front-ends have ended in order.

        `on_ready` is called once with the port, before a connection is accepted. ConfigError: one did not start,
        or the address cannot be listened on; EngineFailure: all have ended, and none can be replaced.
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
                self._open(on_ready)
            await asyncio.gather(*tasks)
        finally:
            watch.cancel()
            await self._end(tasks)
            for number in numbers:
                self._loop.remove_signal_handler(number)
        return self._all_in_order

    def _open(self, on_ready: Callable[[int], None]) -> None:
        """From now on who connects waits for a front-end, each of which is about to hear that it may accept."""
        self._address = listen_shared(self._sockets, self._config.host, self._config.start_port)
        on_ready(self._address[1])
        for desk in self._ready_desks():
            desk.tell_accept()

    async def _await_all(self, ready: Sequence["asyncio.Future[None]"], tasks: Sequence["asyncio.Task[None]"]) -> None:
        """Until all are ready, or one will never be."""
        waiting = asyncio.ensure_future(asyncio.wait(ready))
        ended: set[asyncio.Future[Any]] = {waiting, *tasks}
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in tasks:
            if task.done():
                task.result()

    async def _keep(self, place: int, ready: "asyncio.Future[None]") -> None:
        """A front-end at this place, and another where it fails, until the server ends."""
        name, pause = f"front-end {place + 1}", _RESTART_AFTER
        while not self._num_signals:
            was_ready = False
            try:
                status, was_ready = await self._serve_one(place, name, ready)
                ended = f"has ended with status {status}"
            except OSError as error:  # of a process that cannot be started
                status, ended = 1, f"cannot be started ({error.strerror})"
            if self._num_signals:
                self._all_in_order &= status == 0
                return
            if not was_ready and self._address is None:
                raise ConfigError(f"frontend_server_count: {name} {ended} before it was ready; its log is above")
            pause = _RESTART_AFTER if was_ready else min(2 * pause, _LONGEST_PAUSE)
            logger.error("%s %s; another one takes its place in %g s", name, ended, pause)
            self._process.observe_frontend_restart()
            if not was_ready:
                self._leave_to_others(place)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)

    def _leave_to_others(self, place: int) -> None:
        """What connects here would wait for one that may never be ready; EngineFailure where there are no others."""
        self._sockets[place].close()
        self._failing.add(place)
        if len(self._failing) == len(self._sockets):
            raise EngineFailure("no front-end can be replaced; the log above says why: the server has ended")

    async def _serve_one(self, place: int, name: str, ready: "asyncio.Future[None]") -> tuple[int, bool]:
        """Start a front-end and serve it until it ends -> its status, and whether it was ever ready.

        OSError where it cannot be started.
        """
        if place in self._failing:
            assert self._address is not None
            self._sockets[place] = share(self._address)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                process = await _start(theirs, self._sockets[place])
        except OSError:
            ours.close()
            raise
        one = self._running[place] = _FrontEnd(name, process)
        on_ready = partial(self._note_ready, place, one, ready)
        desk = Desk(self._engines, self._exposition, on_ready, self._process.observe_lost_lines)
        try:
            await self._loop.sock_sendall(ours, framed([self._orders(place, name)]))
            await desk.open(ours)
        except OSError:  # it has ended already
            ours.close()
        one.desk = desk
        for _ in range(self._num_signals):  # that came while it was started
            desk.tell_end()
        try:
            return await process.wait(), one.is_ready
        finally:
            desk.close()
            del self._running[place]

    def _note_ready(self, place: int, one: _FrontEnd, ready: "asyncio.Future[None]") -> None:
        one.is_ready = True
        self._failing.discard(place)
        if not ready.done():  # else it is one that takes another's place
            ready.set_result(None)
        if self._address is not None and one.desk is not None:
            one.desk.tell_accept()

    def _orders(self, place: int, name: str) -> Orders:
        config = replace(self._config, grpc_port=0) if place else self._config
        return Orders(name, len(self._sockets), config, self._served)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            for one in tuple(self._running.values()):
                if one.desk is None:
                    continue
                one.desk.tell_problems()
                # Looks are counted, and not seconds: this process may have been stopped as well.
                if one.is_ready and one.desk.ping() == _SILENT_LOOKS:
                    one.kill(f"has not answered for {_SILENT_LOOKS * _LOOK_EVERY:g} s")

    def _pass_on(self, number: int) -> None:
        """A signal to this process is one to all front-ends; the first that ends them ends the server."""
        desks = [one.desk for one in self._running.values() if one.desk is not None]
        if number == signal.SIGHUP:  # one that is started just now will read the keys in any case
            for desk in desks:
                desk.tell_reload()
            return
        self._num_signals += 1
        self._ending.set()
        for listener in self._sockets:  # else it would take connections that nobody accepts
            listener.close()
        for desk in desks:
            desk.tell_end()
        own = self._config.drain_seconds + seconds_to_end(self._config) + _CLOSING
        self._loop.call_later(own if self._num_signals == 1 else _KILL_AFTER, self._kill)

    async def _end(self, tasks: Sequence["asyncio.Task[None]"]) -> None:
        """End what still runs, where one did not start, or something here has failed."""
        if not all(task.done() for task in tasks):
            self._pass_on(signal.SIGTERM)
            self._loop.call_later(_KILL_AFTER, self._kill)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _kill(self) -> None:
        for one in self._running.values():
            one.kill("does not end")

    def _ready_desks(self) -> list[Desk]:
        """Of the front-ends that can serve."""
        return [one.desk for one in self._running.values() if one.is_ready and one.desk is not None]

    def _is_healthy(self) -> bool:
        return not self._num_signals and not any(map(problem_of, self._engines))

    async def _exposition(self) -> bytes:
        """With all that was counted until now, but for front-ends that do not say so in time."""
        asked = [self._loop.create_task(desk.catch_up()) for desk in self._ready_desks()]
        if asked:
            _, late = await asyncio.wait(asked, timeout=_CATCH_UP)
            for task in late:
                task.cancel()
        return render(self._process, [engine.metrics for engine in self._engines])


def serve(
    engines: Sequence[Engine], config: ServerConfig, process: ProcessMetrics, on_ready: Callable[[int], None]
) -> bool:
    """Serve by `config.frontend_server_count` front-ends, as `server.app.serve` does by itself; errors as there."""
    count, num_cores = config.frontend_server_count, usable_cores()
    if count > num_cores:
        logger.warning(
            "frontend_server_count: %d front-ends on %d cores take turns; fewer do as much", count, num_cores
        )
    sockets = unbound(config.host, count)

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
    """What a front-end is told of a model: the folders that it was loaded from, whatever a hub has by now."""
    config = replace(engine.config, hf_hub_offline=True)
    config = replace(config, checkpoint_path=str(hub.resolve(config, progress=False)))
    return Served(config, engine.info(), Reach.of(engine.runtime.model))
