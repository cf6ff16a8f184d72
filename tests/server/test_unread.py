"""Clients that ask and do not read: what is kept of an answer goes with the connection (rtp_llm/server/unread.py)."""

import socket
import time
from dataclasses import replace

import orjson
import pytest

from tests.server.conftest import CONFIG, running_server
from tests.server.fake_engine import FakeEngine

COUNT = 60_000  # texts, whose answer is far more than the system keeps for a connection
SETTINGS = replace(CONFIG, timeout_keep_alive=1, max_client_batch_size=COUNT, max_body_bytes=1 << 20)
BODY = orjson.dumps({"input": ["a"] * COUNT})
REQUEST = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.mark.parametrize("reads", [False, True])
def test_a_connection_ends_when_nothing_is_read(reads: bool) -> None:
    with running_server(FakeEngine(), SETTINGS) as address, socket.socket() as connection:
        if not reads:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", address.port))
        connection.sendall(REQUEST)
        head, _, start = connection.recv(1000).partition(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(start)
        for _ in range(30):
            time.sleep(0.1)
            if reads:
                length -= len(connection.recv(100_000, socket.MSG_WAITALL))
        while part := connection.recv(100_000):
            length -= len(part)
            if length <= 0:
                break
    assert (length <= 0) is reads
