"""Sockets at one address: shared among those of one server, and with nobody else."""

import select
import socket

import pytest

from rtp_llm.errors import ConfigError
from rtp_llm.server.listening import in_url, listen, listen_shared, share, unbound


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_of_two_servers_that_start_at_once_one_is_refused(host: str) -> None:
    """Whether it has front-ends or not, and whichever was there first."""
    ours, theirs = unbound(host, 3), unbound(host, 2)
    try:
        address = listen_shared(ours, host, 0)
        for refused in (lambda: listen_shared(theirs, host, address[1]), lambda: listen(host, address[1])):
            with pytest.raises(ConfigError, match=f"cannot listen on {host}:{address[1]}: .*in use.*--start_port"):
                refused()
    finally:
        for one in (*ours, *theirs):
            one.close()
    with listen(host, 0) as alone, pytest.raises(ConfigError, match="in use"):
        listen_shared(theirs := unbound(host, 2), host, alone.getsockname()[1])
    for one in theirs:
        one.close()


def test_an_address_before_a_port() -> None:
    assert [in_url(host) for host in ("127.0.0.1", "::1", "localhost")] == ["127.0.0.1", "[::1]", "localhost"]


def test_every_address_is_ipv4_too() -> None:
    """As gRPC has it, which listens on the same host."""
    with listen("::", 0) as alone:
        socket.create_connection(("127.0.0.1", alone.getsockname()[1]), timeout=10).close()
    ours = unbound("::", 2)
    address = listen_shared(ours, "::", 0)
    ours.append(share(address))
    socket.create_connection(("127.0.0.1", address[1]), timeout=10).close()
    for one in ours:
        one.close()


def test_connections_are_shared_out_and_a_socket_can_be_replaced() -> None:
    ours = unbound("127.0.0.1", 2)
    address = listen_shared(ours, "127.0.0.1", 0)
    ours[0].close()
    ours[0] = share(address)
    ours[0].listen()
    clients = []
    try:
        for _ in range(200):
            clients.append(socket.create_connection(address))
            if len(select.select(ours, [], [], 0.01)[0]) == 2:
                return
        raise AssertionError("one socket has got all connections")
    finally:
        for one in (*ours, *clients):
            one.close()
