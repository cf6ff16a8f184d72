"""The server: the application, one socket, uvicorn on uvloop and httptools, gRPC beside it, an orderly end."""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError
from rtp_llm.observability import Observer, ProcessMetrics
from rtp_llm.server.auth import KeyRing
from rtp_llm.server.dispatch import NO_ANSWER, Dispatcher
from rtp_llm.server.engine_like import Elsewhere, EngineLike
from rtp_llm.server.listening import listen
from rtp_llm.server.open_files import allow_open_files
from rtp_llm.server.protocol import LAST_CALL, PlainToTls, Protocol
from rtp_llm.server.tls import check_certificate
from rtp_llm.server.tls_listener import TlsListener

if TYPE_CHECKING:
    from rtp_llm.server.grpc import GrpcServer

logger = logging.getLogger(__name__)

_CLOSING = 0.1  # seconds that uvicorn takes for connections that nothing is due on
_LOOK_AGAIN = 0.05  # seconds between two looks for a second signal
_UNLIMITED = 600  # seconds that shutdown_timeout=-1 stands for, as in the original
EVERYWHERE = ("0.0.0.0", "::", "")


def create_app(engines: EngineLike | Sequence[EngineLike], config: ServerConfig) -> ASGIApp:
    """The HTTP face of an engine, or of several; `config` gives the limits."""
    return Dispatcher(engines, config)


def check(config: ServerConfig) -> None:
    """ConfigError for what would keep `serve` from starting: worth knowing before a large model is loaded."""
    allow_open_files(config)
    listen(config.host, config.start_port).close()
    if config.grpc_port:
        check_grpc()
        listen(config.host, config.grpc_port, "grpc_port").close()
    check_certificate(config)
    KeyRing(config)


def warn_if_open(config: ServerConfig) -> None:
    """Log that everybody may ask, where that is so and this machine is not the only one that can."""
    if not (config.api_key or config.api_key_file) and config.host in EVERYWHERE:
        logger.warning(
            "listening on all interfaces without an API key: whoever reaches this machine can use the server; "
            "--api_key_file FILE asks for keys, --host 127.0.0.1 serves this machine alone"
        )


def check_grpc() -> None:
    """ConfigError where the libraries of gRPC are not installed."""
    try:
        _grpc_server()
    except ImportError as error:
        message = f"grpc_port: gRPC needs more libraries ({error}): pip install 'rtp-llm[grpc]'"
        raise ConfigError(message, param="grpc_port") from None


def _grpc_server() -> "type[GrpcServer]":
    """The class; ImportError where its libraries are not installed."""
    # NOTE: read once, when gRPC is loaded. It writes a line of its own, past the log, for each handshake that fails: as
    # many as anybody likes to send.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from rtp_llm.server.grpc import GrpcServer

    return GrpcServer


def serve(
    engines: EngineLike | Sequence[EngineLike],
    config: ServerConfig,
    on_ready: Callable[[int], None] | None = None,
    observers: Sequence[Observer] = (),
    process: ProcessMetrics | None = None,
    listener: socket.socket | None = None,
    elsewhere: Elsewhere | None = None,
) -> bool:
    """Serve until SIGINT or SIGTERM, then let running requests end, for at most `config.shutdown_timeout` seconds.

    Before that, for `config.drain_seconds`, the server serves on and says that it is not healthy. A second signal ends
    it at once -> False then.

    `on_ready` is called once with the port, when it accepts connections; `observers` are told of each request that has
    ended; `process` tells of this process at /metrics. `listener` is a socket to serve on instead of one of its own,
    and `elsewhere` the process of the engines, where that is not this one.
    ConfigError: the address cannot be listened on.
    """
    listener = listener or listen(config.host, config.start_port)
    app = Dispatcher(engines, config, observers, process, elsewhere)
    options = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=config.timeout_keep_alive,
        ssl_certfile=config.ssl_certfile or None,
        ssl_keyfile=config.ssl_keyfile or None,
    )
    server = _Server(options, app, config, on_ready, observers, elsewhere)
    with listener, _signals_end_here(app.keys.reload):
        server.run(sockets=[listener])
    return not server.force_exit


def seconds_to_end(config: ServerConfig) -> int:
    """What running requests get at the end."""
    return _UNLIMITED if config.shutdown_timeout < 0 else config.shutdown_timeout


class _Server(uvicorn.Server):
    """uvicorn, with gRPC on the same event loop."""

    def __init__(
        self,
        options: uvicorn.Config,
        app: Dispatcher,
        config: ServerConfig,
        on_ready: Callable[[int], None] | None,
        observers: Sequence[Observer],
        elsewhere: Elsewhere | None,
    ) -> None:
        super().__init__(options)
        self._elsewhere = elsewhere
        self._on_ready = on_ready
        self._end_grpc: Callable[[], Awaitable[None]] | None = None
        self._app = app
        self._settings = config
        self._observers = observers

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server in order, the second at once; uvicorn itself heeds only SIGINT twice.

        Where the engines are in another process, that one passes signals on: one that all processes of a group get
        would else be two.
        """
        if self._elsewhere is None:
            self.force_exit = self.should_exit
            super().handle_exit(sig, frame)

    def end(self) -> None:
        """As a signal does."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Everything that can fail comes before the port opens, and opening it is the last."""
        if self._elsewhere is not None:
            await self._elsewhere.open(self.end, self._app.keys.reload)
        grpc = self._bind_grpc(self._settings) if self._settings.grpc_port else None
        if self._elsewhere is not None and not await self._elsewhere.may_accept():
            await self._elsewhere.close()
            return
        if grpc is not None:
            await grpc.start()
            self._end_grpc = lambda: grpc.stop(0 if self.force_exit else seconds_to_end(self._settings))
        await self._accept(sockets or [])
        if self._on_ready is not None and sockets:
            self._on_ready(sockets[0].getsockname()[1])

    async def _accept(self, sockets: list[socket.socket]) -> None:
        """As uvicorn does, whose servers have no word for who comes without TLS, or fails at it."""
        context = self.config.ssl
        await super().startup([] if context else sockets)
        if context is None:
            return
        given = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        secure, plain = partial(Protocol, **given), partial(PlainToTls, **given)
        for one in sockets:
            tls = TlsListener(one, context, secure, plain, self._settings.timeout_keep_alive, self._tell_handshake)
            self.servers.append(tls)  # type: ignore[arg-type]

    def _tell_handshake(self, client: tuple[str, int], reason: str) -> None:
        Protocol.unreadable.tell_handshake(client, reason)
        self._app.observe_unreadable(NO_ANSWER)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._drain()
        ends = [self._end_http(sockets)] + ([self._end_grpc()] if self._end_grpc else [])
        await asyncio.gather(*ends)
        if self._elsewhere is not None:
            await self._elsewhere.close()

    async def _end_http(self, sockets: list[socket.socket] | None) -> None:
        """uvicorn's own end has no word for an answer that its client does not read, and calls it an error."""
        seconds, num_running = seconds_to_end(self._settings), len(self.server_state.tasks)
        logger.info("ending: requests under way, which have %d s (shutdown_timeout): %d", seconds, num_running)
        await asyncio.gather(*(one.finish(LAST_CALL) for one in self.servers if isinstance(one, TlsListener)))
        ending = asyncio.ensure_future(super().shutdown(sockets))
        done, _ = await asyncio.wait({ending}, timeout=seconds + _CLOSING)
        if self.force_exit:
            logger.info("a second signal: requests without an answer get 503: %d", len(self.server_state.tasks))
        if done:
            return await ending
        ending.cancel()
        tasks = list(self.server_state.tasks)
        unread = sum(1 for one in self.server_state.connections if one.transport.get_write_buffer_size())
        if tasks or unread:
            logger.warning(
                "shutdown_timeout (%d s) is over: requests without an answer, which get 503: %d; "
                "connections that are closed with an answer that their client has not read: %d",
                seconds, len(tasks), unread,
            )  # fmt: skip
        for task in tasks:
            task.cancel()

    async def _drain(self) -> None:
        """Serve on, for whoever has not heard yet; each answer is its connection's last, so that none is left idle."""
        self._app.catalog.draining = True
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.drain_seconds
        if self._settings.drain_seconds:
            logger.info("draining for %d s: /health says 503, requests are served", self._settings.drain_seconds)
        # A server that can answer nothing more has nothing to wait for.
        while loop.time() < end and not self.force_exit and self._app.catalog.can_answer:
            await asyncio.sleep(_LOOK_AGAIN)

    def _bind_grpc(self, config: ServerConfig) -> "GrpcServer":
        app = self._app
        server = _grpc_server()(app.catalog, config, app.admission, app.keys, app.turns, self._observers)
        server.bind(config.grpc_port)
        return server


@contextmanager
def _signals_end_here(reload: Callable[[], None]) -> Iterator[None]:
    """SIGHUP reads the keys again; the signals that stop uvicorn are its own affair.

    uvicorn raises the signal that stopped it once more at its end; the caller still has an engine to close.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    if hasattr(signal, "SIGHUP"):
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda number, frame: reload())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: object) -> None:
    logger.debug("signal %d was handled", number)
