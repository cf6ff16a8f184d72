"""The HTTP server: the application, one socket, uvicorn on uvloop and httptools, an orderly end."""

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError
from rtp_llm.server.dispatch import Dispatcher
from rtp_llm.server.protocol import Protocol
from rtp_llm.server.service import EngineLike

logger = logging.getLogger(__name__)

_BACKLOG = 2048
_UNLIMITED = 600  # seconds that shutdown_timeout=-1 stands for, as in the original


def create_app(engine: EngineLike, config: ServerConfig) -> ASGIApp:
    """The HTTP face of `engine`; `config` gives the limits."""
    return Dispatcher(engine, config)


def serve(engine: EngineLike, config: ServerConfig, on_ready: Callable[[], None] | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then let running requests end, for at most `config.shutdown_timeout` seconds.

    `on_ready` is called once, when the socket accepts connections. ConfigError: the address cannot be listened on.
    """
    listener = listen(config.host, config.start_port)
    options = uvicorn.Config(
        create_app(engine, config),
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=config.timeout_keep_alive,
        timeout_graceful_shutdown=_UNLIMITED if config.shutdown_timeout < 0 else config.shutdown_timeout,
    )
    server = _Server(options, on_ready)
    with listener, _signals_end_here():
        server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError says in one line why there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"cannot listen on {host}:{port}: {reason}; choose another with --host or --start_port"
        raise ConfigError(message, param="start_port") from error


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            logger.debug("listening on http://%s:%d", *listener.getsockname()[:2])
        if self._on_ready is not None:
            self._on_ready()


@contextmanager
def _signals_end_here() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more at its end; the caller still has an engine to close."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: object) -> None:
    logger.debug("signal %d was handled", number)
