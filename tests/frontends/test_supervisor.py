"""Who supervises front-ends: what it passes on to them, whom it replaces, and that it always comes to an end."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.config import EngineConfig, ServerConfig
from rtp_llm.errors import ConfigError, EngineFailure
from rtp_llm.frontends import supervisor
from rtp_llm.frontends.channel import Channel
from rtp_llm.frontends.messages import Accept, CatchUp, End, Orders, Ping, Pong, Problems, Ready, Reload
from rtp_llm.frontends.supervisor import Supervisor
from rtp_llm.observability import ProcessMetrics
from rtp_llm.server.listening import listen, unbound
from tests.engine.fakes import FakeRuntime, make_engine
from tests.frontends.conftest import on_loop, until


class FakeFrontEnd:
    """A process as the supervisor sees it; it ends when it is told to, unless `hangs`, or is killed."""

    pid = 1

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.told: list[Any] = []
        self.was_killed = self.hangs = False
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._channel = Channel(self._receive, lambda: None)

    async def open(self, end: socket.socket) -> None:
        await self._channel.open(end.dup())

    def _receive(self, message: Any) -> None:
        if isinstance(message, Ping) and not self.hangs:
            self._channel.send(Pong())
        elif not isinstance(message, (Ping, Problems)):
            self.told.append(message)
            if isinstance(message, End) and not self.hangs:
                self.finish(0)

    def say_ready(self) -> None:
        self._channel.send(Ready())

    def kill(self) -> None:
        self.was_killed = True
        self.finish(-9)

    def finish(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)
            self._channel.close()

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)


class Trial:
    """A supervisor of two front-ends, and all that it has started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: ServerConfig) -> None:
        self.started: list[FakeFrontEnd] = []
        self.before_start: Callable[[], object] = lambda: None
        self.sockets = unbound("127.0.0.1", 2)
        self.ports: list[int] = []
        self.on_ready: Callable[[int], None] = self.ports.append
        self.config = config
        monkeypatch.setattr(supervisor, "_start", self._start)

    async def _start(self, end: socket.socket, listener: socket.socket) -> FakeFrontEnd:
        one = FakeFrontEnd(listener)
        await one.open(end)
        self.started.append(one)  # who waits for it may have it speak at once
        self.before_start()  # a signal may come while the process is made
        return one

    async def run(self) -> "asyncio.Task[bool]":
        self.supervisor = Supervisor([], self.config, ProcessMetrics(), self.sockets)
        task = asyncio.ensure_future(self.supervisor.run(self.on_ready))
        await until(lambda: len(self.started) == 2)
        return task

    async def run_until_ready(self) -> "asyncio.Task[bool]":
        task = await self.run()
        for one in self.started:
            one.say_ready()
        await until(lambda: bool(self.ports))
        return task

    def close(self) -> None:
        for one in self.sockets:
            one.close()


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    monkeypatch.setattr(supervisor, "_RESTART_AFTER", 0.005)
    options: dict[str, Any] = {"host": "127.0.0.1", "start_port": 0, "drain_seconds": 0, "shutdown_timeout": 0}
    trial = Trial(monkeypatch, ServerConfig(checkpoint_path="fake", **options))
    yield trial
    trial.close()


def kinds(one: FakeFrontEnd) -> list[type]:
    return [type(message) for message in one.told]


def test_signals_are_told_and_not_sent(trial: Trial) -> None:
    """A front-end hears of each once, also where all processes of a group get it, and also before it is ready."""

    async def run() -> None:
        task = await trial.run()
        await until(lambda: all(one.told for one in trial.started))
        os.kill(os.getpid(), signal.SIGHUP)
        trial.started[0].say_ready()
        trial.started[1].say_ready()
        await until(lambda: bool(trial.ports))
        os.kill(os.getpid(), signal.SIGTERM)
        assert await task
        for number, one in enumerate(trial.started):
            assert kinds(one) == [Orders, Reload, Accept, End]
            assert one.told[0].name == f"front-end {number + 1}" and one.told[0].num_front_ends == 2

    on_loop(run())


def test_the_port_opens_when_all_could_serve_and_is_told_before_anybody_is_answered(trial: Trial) -> None:
    told: list[list[type]] = []

    def announce(port: int) -> None:
        socket.create_connection(("127.0.0.1", port)).close()  # who has read it need not try twice
        told.extend(kinds(one) for one in trial.started)
        trial.ports.append(port)

    async def run() -> None:
        trial.on_ready = announce
        task = await trial.run()
        trial.started[0].say_ready()
        await until(lambda: any(one.is_ready for one in trial.supervisor._running.values()))
        assert [one.getsockname()[1] for one in trial.sockets] == [0, 0]
        trial.started[1].say_ready()
        await until(lambda: all(kinds(one) == [Orders, Accept] for one in trial.started))
        assert told == [[Orders], [Orders]]
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 10)

    on_loop(run())


def test_an_address_that_is_taken_meanwhile_ends_all(trial: Trial) -> None:
    """By another server that has started in the same second."""

    async def run() -> None:
        task = await trial.run()
        with listen("127.0.0.1", 0) as taken:
            trial.supervisor._config = replace(trial.config, start_port=taken.getsockname()[1])
            for one in trial.started:
                one.say_ready()
            with pytest.raises(ConfigError, match="cannot listen on 127.0.0.1"):
                await asyncio.wait_for(task, 10)
        assert [kinds(one) for one in trial.started] == [[Orders, End]] * 2 and not trial.ports

    on_loop(run())


def test_one_that_fails_twice_before_the_port_is_open_is_the_end(trial: Trial) -> None:
    async def run() -> None:
        task = await trial.run()
        trial.started[0].say_ready()
        await until(lambda: any(one.is_ready for one in trial.supervisor._running.values()))
        trial.started[0].finish(3)
        await until(lambda: len(trial.started) == 3)
        trial.started[2].finish(4)
        with pytest.raises(ConfigError, match="front-end 1 has ended with status 4 before it was ready"):
            await asyncio.wait_for(task, 10)

    on_loop(run())


def test_metrics_wait_for_what_has_been_counted_and_no_longer(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """These two never say that they have told."""
    monkeypatch.setattr(supervisor, "_CATCH_UP", 0.01)

    async def run() -> None:
        task = await trial.run_until_ready()
        assert b"rtp_llm_frontends 2.0" in await asyncio.wait_for(trial.supervisor._exposition(), 10)
        await until(lambda: all(CatchUp in kinds(one) for one in trial.started))
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 10)

    on_loop(run())


def test_a_signal_while_a_process_is_made_reaches_it(trial: Trial) -> None:
    async def run() -> None:
        task = await trial.run_until_ready()
        trial.before_start = lambda: trial.supervisor._pass_on(signal.SIGTERM)
        trial.started[0].finish(3)
        await asyncio.wait_for(task, 10)
        assert [kinds(one) for one in trial.started] == [[Orders, Accept], [Orders, Accept, End], [Orders, End]]

    on_loop(run())


def test_one_that_does_not_end_is_killed(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_CLOSING", 0.01)

    async def run() -> None:
        task = await trial.run_until_ready()
        trial.started[0].hangs = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert not await asyncio.wait_for(task, 10)
        assert [one.was_killed for one in trial.started] == [True, False]

    on_loop(run())


def test_one_that_hangs_is_replaced(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its share of the connections would wait for ever, and a probe seldom meets it."""
    monkeypatch.setattr(supervisor, "_LOOK_EVERY", 0.005)

    async def run() -> None:
        task = await trial.run_until_ready()
        trial.started[0].hangs = True
        await until(lambda: len(trial.started) == 3)
        assert [one.was_killed for one in trial.started] == [True, False, False]
        trial.started[2].say_ready()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 10)

    on_loop(run())
    assert "front-end 1 has not answered for 0.6 s, and is killed" in caplog.text


def test_a_failed_start_ends_one_that_waits_to_be_replaced(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place has no process at this moment that could be told to end."""
    monkeypatch.setattr(supervisor, "_RESTART_AFTER", 60)

    async def run() -> None:
        task = await trial.run()
        trial.started[0].say_ready()
        await until(lambda: 0 in trial.supervisor._running and trial.supervisor._running[0].is_ready)
        trial.started[0].finish(3)
        await until(lambda: 0 not in trial.supervisor._running)
        trial.started[1].finish(4)
        with pytest.raises(ConfigError, match="front-end 2 has ended with status 4 before it was ready"):
            await asyncio.wait_for(task, 10)

    on_loop(run())


def test_what_cannot_be_replaced_keeps_no_connections(trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    """They would wait for one that may never be ready; the next to be tried gets a new socket at the same address."""

    async def run() -> None:
        task = await trial.run_until_ready()
        first = trial.sockets[0]
        trial.started[0].finish(3)
        await until(lambda: len(trial.started) == 3)
        assert trial.sockets[0] is first  # those who connect meanwhile are served soon
        trial.started[2].finish(1)
        await until(lambda: len(trial.started) == 4)
        assert first.fileno() == -1
        assert trial.started[3].listener.getsockname() == trial.supervisor._address
        trial.started[3].say_ready()
        await until(lambda: not trial.supervisor._failing)
        await until(lambda: kinds(trial.started[3]) == [Orders, Accept])
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 10)

    on_loop(run())
    assert "front-end 1 has ended with status 1; another one takes its place in 0.01 s" in caplog.text


def test_none_that_can_be_replaced_is_the_end(trial: Trial) -> None:
    async def run() -> None:
        task = await trial.run_until_ready()
        for one in tuple(trial.started):
            one.finish(3)
        await until(lambda: len(trial.started) == 4)
        for one in trial.started[2:]:
            one.finish(1)
        with pytest.raises(EngineFailure, match="no front-end can be replaced"):
            await asyncio.wait_for(task, 10)

    on_loop(run())


def test_modules_come_from_where_this_process_has_its_own(tmp_path: Path) -> None:
    """And not from the working directory, which may have files of such names."""
    (tmp_path / "uvicorn.py").write_text("raise SystemExit(7)\n")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.shutdown(socket.SHUT_WR)
        command = [*supervisor._COMMAND, str(theirs.fileno()), str(theirs.fileno())]
        ended = subprocess.run(command, cwd=tmp_path, pass_fds=[theirs.fileno()], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_a_hub_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its branch may have moved on since the model was loaded, and a front-end may start when no hub is reached."""
    asked: list[EngineConfig] = []

    def resolve(config: EngineConfig, progress: bool) -> Path:
        asked.append(config)
        return tmp_path

    monkeypatch.setattr("rtp_llm.checkpoint.hub.resolve", resolve)
    monkeypatch.setattr("rtp_llm.engine.loading.Reach.of", lambda model: None)
    engine = make_engine(runtime := FakeRuntime())
    monkeypatch.setattr(runtime, "model", None, raising=False)
    try:
        served = supervisor._served(engine)
    finally:
        engine.close()
    assert served.config.checkpoint_path == str(tmp_path)
    assert served.config.hf_hub_offline and asked[0].hf_hub_offline  # the base of an adapter is looked for by it too
