"""A load generator in a process of its own: one thread, non-blocking sockets, no event loop of others.

Closed loop: every connection sends its next request when its last one is answered. Open loop: requests are due at the
times of a Poisson process, whatever the server does; one that finds no free connection waits inside the client, and its
latency counts from the moment it was due, so that a slow answer delays nobody's clock (no coordinated omission).
"""

import multiprocessing
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from multiprocessing.connection import Connection
from typing import Any

import httptools
import numpy as np
from numpy.typing import NDArray

from benchmarks.child import end

Latencies = NDArray[np.float64]
_GRACE = 30.0  # seconds after the last request within which its answer must come
_ABORTED = 0  # the status of a request whose connection ended before its answer did


@dataclass(frozen=True)
class Plan:
    """What to send: whole HTTP requests, in order and around.

    rate         requests a second in the mean; 0: closed loop
    connections  at once, at most
    limit        requests after which a closed loop ends before its time
    patience     seconds that a due request waits for a free connection before it is given up (open loop)
    """

    requests: Sequence[bytes]
    connections: int
    seconds: float
    rate: float = 0.0
    seed: int = 0
    limit: int | None = None
    patience: float = float("inf")


@dataclass
class Seen:
    """What came back.

    latencies    seconds of the answers with status 200, in the order in which they came
    statuses     how many answers by status; 0: the connection ended first, or no answer came in time
    unsent       requests that were due and found no free connection while they had patience
    lateness     seconds by which the 99th percentile of requests was sent after it was due (open loop)
    cpu_seconds  of the client
    """

    latencies: Latencies
    statuses: dict[int, int]
    unsent: int
    seconds: float
    lateness: float
    cpu_seconds: float

    def percentile(self, share: float) -> float | None:
        """Milliseconds; None without answers, or with too few for this percentile to be one."""
        if len(self.latencies) * (1 - share) < 1:
            return None
        return float(np.quantile(self.latencies, share, method="higher")) * 1e3

    @property
    def rate(self) -> float:
        """Answers of status 200 a second."""
        return len(self.latencies) / self.seconds


class LoadClient:
    """The process; one plan at a time, `start` and `finish` apart so that two clients can run at once."""

    def __init__(self, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, port), daemon=True)
        self._process.start()
        child.close()

    def run(self, plan: Plan) -> Seen:
        """Send a plan's requests and wait for all answers."""
        self.start(plan)
        return self.finish()

    def start(self, plan: Plan) -> None:
        """Begin with a plan."""
        self._pipe.send(plan)

    def finish(self) -> Seen:
        """Wait for the plan's end."""
        seen = self._pipe.recv()
        if isinstance(seen, Exception):
            raise seen
        assert isinstance(seen, Seen)
        return seen

    def close(self) -> None:
        """End the process."""
        end(self._process, self._pipe)


def http_request(path: str, body: str, headers: Sequence[str] = ()) -> bytes:
    """The bytes of a POST of JSON."""
    content = body.encode()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


def _serve(pipe: Connection, port: int) -> None:
    while True:
        try:
            plan = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_Run(plan, port).go())
        except Exception as error:  # the border: the parent raises it
            pipe.send(RuntimeError(f"the load client failed: {type(error).__name__}: {error}"))


@dataclass
class _Channel:
    """One connection; httptools calls the methods with `on_`."""

    socket: socket.socket
    due: float = 0.0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    answered: bool = False
    stays_open: bool = False
    parser: Any = None

    def on_message_complete(self) -> None:
        self.answered = True
        # Only here: afterwards the parser has forgotten that the answer had a length, and says no to any.
        self.stays_open = self.parser.should_keep_alive()


class _Run:
    """One plan on its way."""

    def __init__(self, plan: Plan, port: int) -> None:
        self._plan, self._port = plan, port
        self._requests = islice(cycle(plan.requests), plan.limit)
        self._epoll = select.epoll()
        self._open: dict[int, _Channel] = {}
        self._idle: list[_Channel] = []
        self._waiting: deque[float] = deque()  # when requests were due that found no free connection
        self._latencies: list[float] = []
        self._lateness: list[float] = []
        self._statuses: Counter[int] = Counter()
        self._busy = self._unsent = 0
        self._last = 0.0

    def go(self) -> Seen:
        cpu, begin = time.process_time(), time.perf_counter()
        end = self._last = begin + self._plan.seconds
        if self._plan.rate:
            self._open_loop(begin, end)
        else:
            self._closed_loop(end)
        # An open loop that ended late was too fast for the server: what it answered, it answered in that time.
        seconds = max(self._last, end) - begin if self._plan.rate else self._last - begin
        for channel in list(self._open.values()):
            self._forget(channel)
        self._statuses[_ABORTED] += self._busy
        self._unsent += len(self._waiting)
        lateness = float(np.quantile(self._lateness, 0.99)) if self._lateness else 0.0
        cpu = time.process_time() - cpu
        return Seen(np.array(self._latencies), dict(+self._statuses), self._unsent, seconds, lateness, cpu)

    def _closed_loop(self, end: float) -> None:
        for request in islice(self._requests, self._plan.connections):
            self._send(time.perf_counter(), request)
        while self._busy and time.perf_counter() < end + _GRACE:
            free = self._poll(1.0)
            if time.perf_counter() < end:
                for request in islice(self._requests, free):
                    self._send(time.perf_counter(), request)

    def _open_loop(self, begin: float, end: float) -> None:
        arrivals = _poisson(begin, end, self._plan.rate, self._plan.seed)
        due = next(arrivals, None)
        while due is not None or self._waiting or self._busy:
            now = time.perf_counter()
            while due is not None and due <= now:
                self._waiting.append(due)
                due = next(arrivals, None)
            while self._waiting and now - self._waiting[0] > self._plan.patience:
                self._waiting.popleft()
                self._unsent += 1
            while self._waiting and self._busy < self._plan.connections:
                self._lateness.append(now - self._waiting[0])
                self._send(self._waiting.popleft(), next(self._requests))
            if now > end + _GRACE:
                return
            self._poll(max(due - time.perf_counter(), 0.0) if due is not None else 1.0)

    def _send(self, due: float, request: bytes) -> None:
        channel = self._idle.pop() if self._idle else self._connect()
        channel.due, channel.unsent, channel.answered = due, memoryview(request), False
        self._busy += 1
        self._write(channel)

    def _connect(self) -> _Channel:
        channel = _Channel(socket.create_connection(("127.0.0.1", self._port)))
        channel.socket.setblocking(False)
        channel.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel.parser = httptools.HttpResponseParser(channel)
        self._open[channel.socket.fileno()] = channel
        self._epoll.register(channel.socket.fileno(), select.EPOLLIN)
        return channel

    def _write(self, channel: _Channel) -> None:
        try:
            channel.unsent = channel.unsent[channel.socket.send(channel.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(channel)
            return
        if channel.unsent:
            self._epoll.modify(channel.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _poll(self, timeout: float) -> int:
        """Wait for news, at most `timeout` seconds -> requests that ended."""
        before = self._busy
        # epoll waits in whole milliseconds, select in microseconds.
        if select.select([self._epoll], [], [], timeout)[0]:
            for number, events in self._epoll.poll(0):
                self._advance(self._open[number], events)
        return before - self._busy

    def _advance(self, channel: _Channel, events: int) -> None:
        if events & select.EPOLLOUT:
            self._epoll.modify(channel.socket.fileno(), select.EPOLLIN)
            self._write(channel)
        if not events & ~select.EPOLLOUT:
            return
        try:
            data = channel.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(channel)
            return
        channel.parser.feed_data(data)
        if channel.answered:
            self._finish(channel)

    def _finish(self, channel: _Channel) -> None:
        now = self._last = time.perf_counter()
        status = channel.parser.get_status_code()
        self._statuses[status] += 1
        if status == 200:
            self._latencies.append(now - channel.due)
        self._busy -= 1
        if channel.stays_open and not channel.unsent:
            channel.due, channel.answered = 0.0, False
            self._idle.append(channel)
        else:
            self._forget(channel)

    def _drop(self, channel: _Channel) -> None:
        """The server ended the connection: with a request under way that is an abort, without one its right."""
        if channel.due:
            self._statuses[_ABORTED] += 1
            self._busy -= 1
        else:
            self._idle.remove(channel)
        self._forget(channel)

    def _forget(self, channel: _Channel) -> None:
        del self._open[channel.socket.fileno()]
        self._epoll.unregister(channel.socket.fileno())
        channel.socket.close()


def _poisson(begin: float, end: float, rate: float, seed: int) -> Iterator[float]:
    """Times of arrival, the same for the same seed."""
    rng = np.random.default_rng(seed)
    count = int(rate * (end - begin) * 1.5) + 100
    times = begin + np.cumsum(rng.exponential(1 / rate, count))
    yield from islice((float(at) for at in times), int(np.searchsorted(times, end)))
