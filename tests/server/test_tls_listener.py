"""A port for TLS: who comes without it, with what it does not know, with nothing, or leaves on the way."""

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.server.listening import listen
from rtp_llm.server.tls_listener import TlsListener
from tests.frontends.conftest import on_loop, until

Certificate = tuple[Path, Path, Path]


class Answering(asyncio.Protocol):
    """Says what it is as soon as something comes."""

    def __init__(self, word: bytes) -> None:
        self._word = word

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._word + b" " + data)
        self._transport.close()


@dataclass
class Port:
    listener: TlsListener
    number: int
    failures: list[tuple[Any, str]] = field(default_factory=list)

    async def ask(self, speak: Callable[[socket.socket], bytes]) -> bytes:
        """What a client gets, on a thread of its own."""

        def connect() -> bytes:
            with socket.create_connection(("127.0.0.1", self.number), timeout=20) as connection:
                return speak(connection)

        return await asyncio.to_thread(connect)


@asynccontextmanager
async def port(certificate: Certificate, seconds: float = 20.0) -> AsyncIterator[Port]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[0], certificate[1])
    failures: list[tuple[Any, str]] = []
    with listen("127.0.0.1", 0) as opened:
        listener = TlsListener(
            opened,
            context,
            lambda: Answering(b"over TLS"),
            lambda: Answering(b"plain"),
            seconds,
            lambda client, reason: failures.append((client, reason)),
        )
        yield Port(listener, opened.getsockname()[1], failures)
        listener.close()
        await asyncio.wait_for(listener.wait_closed(), 20)


def trusting(certificate: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[2]))


def secure(context: ssl.SSLContext) -> Callable[[socket.socket], bytes]:
    def speak(connection: socket.socket) -> bytes:
        with context.wrap_socket(connection, server_hostname="localhost") as wrapped:
            wrapped.sendall(b"hello")
            return wrapped.recv(100)

    return speak


def plain(connection: socket.socket) -> bytes:
    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    return connection.recv(100)


def test_with_and_without(certificate: Certificate) -> None:
    async def trial() -> None:
        async with port(certificate) as one:
            answers = await asyncio.gather(*(one.ask(secure(trusting(certificate))) for _ in range(8)), one.ask(plain))
            assert answers == [b"over TLS hello"] * 8 + [b"plain GET / HTTP/1.1\r\n\r\n"]
            assert not one.failures

    on_loop(trial())


def test_a_handshake_that_fails_is_told_of(certificate: Certificate) -> None:
    """A client that does not know who has signed, one that speaks another language, one that leaves."""

    def another(connection: socket.socket) -> bytes:
        connection.sendall(b"\x16\x03\x01\x00\x10" + b"?" * 16)
        return connection.recv(100)

    def leave(connection: socket.socket) -> bytes:
        connection.sendall(b"\x16\x03\x01\x02")
        return b""

    async def trial() -> None:
        async with port(certificate) as one:
            with pytest.raises(ssl.SSLCertVerificationError):
                await one.ask(secure(ssl.create_default_context()))
            await until(lambda: len(one.failures) == 1)
            with suppress(ConnectionResetError):
                await one.ask(another)
            await until(lambda: len(one.failures) == 2)
            await one.ask(leave)
            await until(lambda: len(one.failures) == 3)
            clients, reasons = zip(*one.failures, strict=True)
            assert all(client[0] == "127.0.0.1" for client in clients)
            assert "unknown ca" in reasons[0] and "closed the connection" in reasons[2]
            assert await one.ask(secure(trusting(certificate))) == b"over TLS hello"

    on_loop(trial())


def test_who_says_nothing_is_no_failure(certificate: Certificate) -> None:
    """A balancer that looks whether the port is open leaves at once; others are closed after a while."""

    async def trial() -> None:
        async with port(certificate, seconds=0.05) as one:
            assert await one.ask(lambda connection: b"") == b""
            assert await one.ask(lambda connection: connection.recv(1)) == b""
            assert not one.failures

    on_loop(trial())


def test_a_handshake_that_takes_too_long(certificate: Certificate) -> None:
    def stall(connection: socket.socket) -> bytes:
        connection.sendall(b"\x16\x03")
        return connection.recv(1)

    async def trial() -> None:
        async with port(certificate, seconds=0.05) as one:
            with suppress(ConnectionResetError):
                await one.ask(stall)
            await until(lambda: bool(one.failures))
            assert "longer than 0.05 seconds" in one.failures[0][1]

    on_loop(trial())


def test_a_request_behind_the_last_word_of_a_handshake_is_answered(certificate: Certificate) -> None:
    """The client has all that it needs, and the server is about to end."""

    async def trial() -> None:
        async with port(certificate) as one:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = trusting(certificate).wrap_bio(incoming, outgoing, server_hostname="localhost")
            reader, writer = await asyncio.open_connection("127.0.0.1", one.number)
            while True:
                with suppress(ssl.SSLWantReadError):
                    client.do_handshake()
                    break
                writer.write(outgoing.read())
                incoming.write(await reader.read(1 << 16))
            finishing = asyncio.ensure_future(one.listener.finish(20))
            await asyncio.sleep(0)
            client.write(b"hello")
            writer.write(outgoing.read())
            await asyncio.wait_for(finishing, 20)
            one.listener.close()
            answer = b""
            while not answer:
                incoming.write(await asyncio.wait_for(reader.read(1 << 16), 20))
                with suppress(ssl.SSLWantReadError):
                    answer = client.read(100)
            assert answer == b"over TLS hello"
            writer.close()

    on_loop(trial())


def test_its_end_waits_for_nobody(certificate: Certificate) -> None:
    async def trial() -> None:
        async with port(certificate) as one:
            silent, half = (socket.create_connection(("127.0.0.1", one.number)) for _ in range(2))
            with silent, half:
                half.sendall(b"\x16\x03")
                await until(lambda: len(one.listener._meetings) == 2)
                one.listener.close()
                await asyncio.wait_for(one.listener.wait_closed(), 10)
        assert not one.failures

    on_loop(trial())


def test_no_more_files_is_no_busy_loop(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects then is served a moment later."""
    tries = 0

    async def trial() -> None:
        async with port(certificate) as one:
            real = one.listener._listener

            class Full:
                def accept(self) -> Any:
                    nonlocal tries
                    tries += 1
                    raise OSError(errno.EMFILE, "Too many open files")

                def fileno(self) -> int:
                    return real.fileno()

            monkeypatch.setattr(one.listener, "_listener", Full())
            asking = asyncio.ensure_future(one.ask(secure(trusting(certificate))))
            await until(lambda: tries >= 2)
            assert tries == 2
            monkeypatch.undo()
            assert await asking == b"over TLS hello"

    on_loop(trial())
