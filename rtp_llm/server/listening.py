"""Sockets that clients connect to: a process's own, or one of each front-end at an address that they share."""

import socket
from collections.abc import Sequence
from typing import Any

from rtp_llm.errors import ConfigError

_BACKLOG = 2048
# Of the address, the port, and what cannot be a host's name.
_REASONS = (OSError, OverflowError, UnicodeError)


def listen(host: str, port: int, param: str = "start_port") -> socket.socket:
    """A listening socket; ConfigError says in one line why there is none."""
    try:
        host.encode("idna")  # what is no name is found before there is a socket to close
        return socket.create_server(
            (host, port), family=_family(host), backlog=_BACKLOG, dualstack_ipv6=_takes_both(host)
        )
    except _REASONS as error:
        raise _cannot_listen(host, port, param, error) from error


def unbound(host: str, count: int) -> list[socket.socket]:
    """`count` sockets for `listen_shared`, which are at no address yet; ConfigError where the system has none such."""
    if not hasattr(socket, "SO_REUSEPORT"):
        message = "frontend_server_count: this system lets no two processes listen at one address; leave it out"
        raise ConfigError(message, param="frontend_server_count")
    return [_unbound(host) for _ in range(count)]


def listen_shared(sockets: Sequence[socket.socket], host: str, port: int) -> tuple[Any, ...]:
    """Have sockets that are at no address listen at this one -> the address, with the port that 0 has come to.

    Connections are shared out among them. ConfigError as `listen` raises it.
    """
    first, *others = sockets
    try:
        # NOTE: who shares an address is not told that another process of the same user shares it as well. The first
        # socket shares none until it listens, which one socket alone can do: of two servers one is refused, whenever
        # they start.
        first.bind((host, port))
        first.listen(_BACKLOG)
        address: tuple[Any, ...] = first.getsockname()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for one in others:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(address)
            one.listen(_BACKLOG)
    except _REASONS as error:
        raise _cannot_listen(host, port, "start_port", error) from error
    return address


def share(address: tuple[Any, ...]) -> socket.socket:
    """One more socket of an address that is shared, which does not listen yet; OSError where it is not to be had."""
    one = _unbound(address[0])
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def in_url(host: str) -> str:
    """An address as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _unbound(host: str) -> socket.socket:
    """As `listen` has it: a port that was served a moment ago is to be had."""
    one = socket.socket(_family(host))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not _takes_both(host))
    return one


def _takes_both(host: str) -> bool:
    """Whether IPv4 comes to this address too: `::` is every address, as it is for gRPC."""
    return host == "::" and socket.has_dualstack_ipv6()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _cannot_listen(host: str, port: int, param: str, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    message = f"cannot listen on {host}:{port}: {reason}; choose another with --host or --{param}"
    return ConfigError(message, param=param)
