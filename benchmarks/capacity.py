"""How many texts a second at which latency: `python -m benchmarks.capacity CHECKPOINT --p99-ms 100`.

First the costs of a step are measured on this machine, while all cores work: seconds = a + b * tokens + c * sum(len^2).
Then the scheduler is run against them in virtual time (benchmarks.simulator), with requests that come as they please
(Poisson), at rising rates. The answer is the highest rate whose p99 is within the bound. What HTTP, JSON and tokenising
take of the same cores is measured too, on a server under load; of a model without dense embeddings it is left out.
"""

import argparse
import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.load_client import LoadClient, Plan, http_request
from benchmarks.server_process import ServerProcess, body
from benchmarks.simulator import Arrival, Costs, simulate
from rtp_llm.config import EngineConfig
from rtp_llm.core import Item, TaskType
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.loading import load_engine
from rtp_llm.engine.scheduler import Scheduler

# Rows and tokens of the steps that are measured, from a short query to a full step of long texts.
_SHAPES = ((1, 4), (1, 16), (1, 64), (1, 256), (1, 512), (4, 16), (16, 16), (64, 16), (8, 64), (16, 64), (4, 256))
_ROUNDS = 5
_SECONDS_A_ROUND = 0.3
_QUIET = 0.25  # a fit that is further off says that other work disturbed it
_NUM_REQUESTS = 4000  # of a simulated run: p99 is then known to about a tenth of itself
_LOADS = (0.25, 0.5, 0.75, 0.9)
_CONNECTIONS = 32
_SECONDS_OF_REQUESTS = 3.0
_STEPS = 8  # halvings of the interval in which the answer lies


def measure(engine: Engine) -> list[tuple[int, int, float, float]]:
    """(rows, tokens of each, seconds on one core while each other core computes the same, seconds on all of them)."""
    longest, budget = engine.info().max_seq_len, engine.info().max_batch_tokens
    shapes = [(rows, length) for rows, length in _SHAPES if length <= longest and rows * length <= budget]
    # A shape's rounds lie apart, so that what else the machine did for a while does not pass for the shape's cost.
    taken: dict[tuple[int, int], tuple[list[float], list[float]]] = {shape: ([], []) for shape in shapes}
    for _ in range(_ROUNDS):
        for shape in shapes:
            taken[shape][0].extend(_seconds(engine, *shape, 1))
            taken[shape][1].extend(_seconds(engine, *shape, engine.runtime.num_cores))
    quarter = {shape: [float(np.quantile(one, 0.25)) for one in both] for shape, both in taken.items()}
    return [(*shape, one, every) for shape, (one, every) in quarter.items()]


def _seconds(engine: Engine, rows: int, length: int, num_cores: int) -> list[float]:
    """Of each step that was computed in a round, on so many cores each; all cores have work."""
    ids = np.random.default_rng(0).integers(0, engine.info().vocab_size, (rows, length), dtype=np.int32)
    items = [Item(row, index, tasks=engine.info().tasks[:1]) for index, row in enumerate(ids)]
    taken: list[float] = []
    until = time.perf_counter() + _SECONDS_A_ROUND

    def work() -> None:
        while (began := time.perf_counter()) < until:
            engine.runtime.run(items, num_cores)
            taken.append(time.perf_counter() - began)

    threads = [threading.Thread(target=work) for _ in range(engine.runtime.num_cores // num_cores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def fit(measured: Sequence[tuple[int, int, float, float]], num_cores: int) -> tuple[Costs, float]:
    """Costs that are nearest in relative terms, none of them below 0 -> them, and the largest relative error."""
    terms = np.array([(1.0, rows * length, rows * length**2) for rows, length, *_ in measured])
    seconds = np.array([row[2] for row in measured])
    kept = [0, 1, 2]
    while True:
        solution, *_ = np.linalg.lstsq(terms[:, kept] / seconds[:, None], np.ones(len(seconds)), rcond=None)
        if solution.min() >= 0:
            break
        kept = [place for place, value in zip(kept, solution, strict=True) if value >= 0]
    costs = np.zeros(3)
    costs[kept] = solution
    fitted = replace(Costs(*costs.tolist()), gain=_gain(measured, num_cores))
    return fitted, float(np.abs(terms @ costs / seconds - 1).max())


def _gain(measured: Sequence[tuple[int, int, float, float]], num_cores: int) -> float:
    """Of steps of one text, which are those that several cores share; 0 where they are no quicker together."""
    if num_cores == 1:
        return 1.0
    worth = np.median([one / every for rows, _, one, every in measured if rows == 1])
    return float(np.clip((worth - 1) / (num_cores - 1), 0, 1))


def request_seconds(checkpoint: str, num_cores: int, texts: int, tokens: int) -> float:
    """What a request over HTTP takes of the event loop, while 32 connections keep all cores at work."""
    # The number keeps texts apart: of those that are the same one is computed.
    bodies = [body([f"{i * texts + j}" + " a" * (tokens - 3) for j in range(texts)]) for i in range(_NUM_REQUESTS)]
    requests = [http_request("/v1/embeddings", content) for content in bodies]
    with ServerProcess(Path(checkpoint), "--num_threads", str(num_cores)) as server:
        server.wait_for_embedding("ready?")
        with closing(LoadClient(server.port)) as client:
            client.run(Plan(requests, _CONNECTIONS, 1.0))
            before, _ = server.cpu_by_thread()
            seen = client.run(Plan(requests, _CONNECTIONS, _SECONDS_OF_REQUESTS))
            after, _ = server.cpu_by_thread()
    return (after - before) / sum(seen.statuses.values())


class Traffic:
    """Requests that come as they please: `requests` has the lengths of the texts of each, taken around and around."""

    def __init__(self, requests: Sequence[Sequence[int]], batch_tokens: int, num_cores: int, costs: Costs) -> None:
        self._requests = requests
        self._batch_tokens, self._num_cores, self._costs = batch_tokens, num_cores, costs
        lengths = np.concatenate([np.asarray(request) for request in requests])
        self._texts = len(lengths) / len(requests)
        self._mean, self._square = float(lengths.mean()), float((lengths.astype(float) ** 2).mean())

    @property
    def most(self) -> float:
        """Texts a second that full steps alone would reach: no latency is bounded there."""
        costs, rows = self._costs, max(self._batch_tokens / self._mean, 1.0)
        step = costs.fixed + rows * (costs.per_token * self._mean + costs.per_square * self._square)
        return rows / (step + rows / self._texts * costs.per_request) * self._num_cores

    def latencies(self, rate: float) -> tuple[float, float, float]:
        """p50 and p99 in seconds at `rate` texts a second, and the share of the time that the cores work."""
        scheduler = Scheduler(self._batch_tokens, self._num_cores)
        result = simulate(scheduler, self._arrivals(rate), self._costs)
        p50, p99 = (result.percentile(Lane.INTERACTIVE, share) for share in (0.5, 0.99))
        return p50, p99, result.busy / result.finished_at / self._num_cores

    def rate_within(self, p99: float) -> float:
        """The highest rate whose p99 is within the bound; 0 where even a lone request is not."""
        low, high = 0.0, self.most
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.latencies(middle)[1] <= p99 else (low, middle)
        return low

    def _arrivals(self, rate: float) -> Iterator[Arrival]:
        rng, now = random.Random(0), 0.0
        for lengths in itertools.islice(itertools.cycle(self._requests), _NUM_REQUESTS):
            now += rng.expovariate(rate / self._texts)
            yield Arrival(now, lengths)


def spread(texts: int, tokens: tuple[int, int]) -> list[list[int]]:
    """Requests of `texts` texts each, whose tokens are spread evenly in `tokens`."""
    rng = random.Random(0)
    return [[rng.randint(*tokens) for _ in range(texts)] for _ in range(_NUM_REQUESTS)]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, simulate, answer."""
    arguments = _parser().parse_args(argv)
    engine = load_engine(EngineConfig(checkpoint_path=arguments.checkpoint, num_threads=arguments.cores), "capacity")
    try:
        measured, info = measure(engine), engine.info()
    finally:
        engine.close()
    costs, error = fit(measured, info.num_threads)
    tokens = (arguments.least_tokens, min(arguments.most_tokens, info.max_seq_len))
    if TaskType.DENSE in info.tasks:
        seconds = request_seconds(arguments.checkpoint, info.num_threads, arguments.texts, sum(tokens) // 2)
        costs = replace(costs, per_request=seconds)
    _show(costs, error, info.num_threads)
    traffic = Traffic(spread(arguments.texts, tokens), info.max_batch_tokens, info.num_threads, costs)
    answer = traffic.rate_within(arguments.p99_ms / 1e3)
    rates = {f"{share:.0%} of full steps": share * traffic.most for share in _LOADS}
    rates[f"p99 within {arguments.p99_ms:g} ms"] = answer
    rows, results = [], {}
    for name, rate in rates.items():
        p50, p99, busy = traffic.latencies(rate) if rate else (0.0, 0.0, 0.0)
        rows.append([name, f"{rate:.0f}", f"{p50 * 1e3:.1f}", f"{p99 * 1e3:.1f}", f"{busy:.0%}"])
        results[name] = {"texts_per_second": rate, "p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3, "busy": busy}
    print(report.table(("", "texts/s", "p50 ms", "p99 ms", "cores busy"), rows))
    line: dict[str, Any] = {"benchmark": "capacity", **vars(arguments), "costs": vars(costs), "fit_error": error}
    report.finish({**line, "machine": report.machine(), "measured": measured, "results": results}, arguments.json)


def _show(costs: Costs, error: float, num_cores: int) -> None:
    a, b, c = costs.fixed * 1e3, costs.per_token * 1e6, costs.per_square * 1e9
    print(report.describe(report.machine()))
    print(f"a step: {a:.2f} ms + {b:.1f} us a token + {c:.1f} ns a square of a length (fitted within {error:.0%})")
    print(f"{num_cores} cores, each further one on the same step worth {costs.gain:.2f} of the first")
    print(f"a request: {costs.per_request * 1e6:.0f} us of the event loop\n")
    if error > _QUIET:
        print("NOTE: the costs do not fit well: something else ran on this machine; run it again\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--cores", type=int, default=0, help="0: all this process may use")
    parser.add_argument("--texts", type=int, default=1, help="of a request")
    parser.add_argument("--least-tokens", type=int, default=4, help="of a text")
    parser.add_argument("--most-tokens", type=int, default=20, help="of a text")
    parser.add_argument("--p99-ms", type=float, default=100.0, help="the bound that the answer keeps")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    return parser


if __name__ == "__main__":
    main()
