"""Clients of the served part, each in a process of its own that imports no torch and so starts at once."""

import http.client
import multiprocessing
import time
from collections.abc import Sequence


def load(port: int, bodies: Sequence[str], num_clients: int, seconds: float) -> tuple[float, list[float]]:
    """Requests a second of all client processes, and seconds of each request."""
    with multiprocessing.get_context("spawn").Pool(num_clients) as pool:
        found = pool.starmap(_client, [(port, bodies, seconds, place) for place in range(num_clients)])
    count = sum(number for number, _, _ in found)
    begin, end = min(times[0] for _, _, times in found), max(times[1] for _, _, times in found)
    return count / (end - begin), [latency for _, latencies, _ in found for latency in latencies]


def _client(port: int, bodies: Sequence[str], seconds: float, place: int) -> tuple[int, list[float], list[float]]:
    """Several connections, a request in flight on each -> requests answered, seconds of each request, begin and end."""
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(4)]
    sent_at = [0.0] * len(connections)
    latencies: list[float] = []
    number, begin = place, time.time()

    def send(which: int) -> None:
        nonlocal number
        sent_at[which] = time.perf_counter()
        connections[which].request(
            "POST", "/v1/embeddings", bodies[number % len(bodies)], {"Content-Type": "application/json"}
        )
        number += 1

    for which in range(len(connections)):
        send(which)
    which = 0
    while time.time() < begin + seconds:
        answer = connections[which].getresponse()
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}: {answer.read()[:200]!r}")
        answer.read()
        latencies.append(time.perf_counter() - sent_at[which])
        send(which)
        which = (which + 1) % len(connections)
    for connection in connections:
        connection.close()
    return len(latencies), latencies, [begin, time.time()]
