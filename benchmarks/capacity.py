"""How many texts a second at which latency: `python -m benchmarks.capacity CHECKPOINT --p99-ms 100`.

First the costs of a step are measured on this machine, while all cores work: seconds = a + b * tokens + c * sum(len^2).
Then the scheduler is run against them in virtual time (benchmarks.simulator), with requests that come as they please
(Poisson), at rising rates. The answer is the highest rate whose p99 is within the bound. What HTTP, JSON and tokenising
take is not in it: `python -m benchmarks.http_overhead` measures that; it is CPU time of the same machine.
"""

import argparse
import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.simulator import Arrival, Costs, simulate
from rtp_llm.config import EngineConfig
from rtp_llm.core import Item
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
_STEPS = 8  # halvings of the interval in which the answer lies


def measure(engine: Engine) -> list[tuple[int, int, float]]:
    """(rows, tokens of each, seconds) of a step on one core, while the other cores compute the same."""
    longest, budget = engine.info().max_seq_len, engine.info().max_batch_tokens
    shapes = [(rows, length) for rows, length in _SHAPES if length <= longest and rows * length <= budget]
    # A shape's rounds lie apart, so that what else the machine did for a while does not pass for the shape's cost.
    taken: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    for _ in range(_ROUNDS):
        for shape in shapes:
            taken[shape] += _seconds(engine, *shape)
    return [(*shape, float(np.quantile(seconds, 0.25))) for shape, seconds in taken.items()]


def _seconds(engine: Engine, rows: int, length: int) -> list[float]:
    """Of each step that one of the cores has computed in a round."""
    ids = np.random.default_rng(0).integers(0, engine.info().vocab_size, (rows, length), dtype=np.int32)
    items = [Item(row, index, tasks=engine.info().tasks[:1]) for index, row in enumerate(ids)]
    taken: list[float] = []
    until = time.perf_counter() + _SECONDS_A_ROUND

    def work() -> None:
        while (began := time.perf_counter()) < until:
            engine.runtime.run(items, 1)
            taken.append(time.perf_counter() - began)

    threads = [threading.Thread(target=work) for _ in range(engine.runtime.num_cores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def fit(measured: Sequence[tuple[int, int, float]]) -> tuple[Costs, float]:
    """Costs that are nearest in relative terms, none of them below 0 -> them, and the largest relative error."""
    terms = np.array([(1.0, rows * length, rows * length**2) for rows, length, _ in measured])
    seconds = np.array([row[2] for row in measured])
    kept = [0, 1, 2]
    while True:
        solution, *_ = np.linalg.lstsq(terms[:, kept] / seconds[:, None], np.ones(len(seconds)), rcond=None)
        if solution.min() >= 0:
            break
        kept = [place for place, value in zip(kept, solution, strict=True) if value >= 0]
    costs = np.zeros(3)
    costs[kept] = solution
    return Costs(*costs.tolist()), float(np.abs(terms @ costs / seconds - 1).max())


class Traffic:
    """Requests of `texts` texts each, whose tokens are spread evenly in `tokens`."""

    def __init__(self, texts: int, tokens: tuple[int, int], batch_tokens: int, num_cores: int, costs: Costs) -> None:
        self._texts, self._tokens = texts, tokens
        self._batch_tokens, self._num_cores, self._costs = batch_tokens, num_cores, costs

    @property
    def most(self) -> float:
        """Texts a second that full steps alone would reach: no latency is bounded there."""
        mean = sum(self._tokens) / 2
        square = mean**2 + (self._tokens[1] - self._tokens[0]) ** 2 / 12
        rows = max(self._batch_tokens / mean, 1.0)
        step = self._costs.fixed + rows * (self._costs.per_token * mean + self._costs.per_square * square)
        return rows / step * self._num_cores

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
        for _ in range(_NUM_REQUESTS):
            now += rng.expovariate(rate / self._texts)
            yield Arrival(now, [rng.randint(*self._tokens) for _ in range(self._texts)])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, simulate, answer."""
    arguments = _parser().parse_args(argv)
    engine = load_engine(EngineConfig(checkpoint_path=arguments.checkpoint, num_threads=arguments.cores), "capacity")
    try:
        measured, info = measure(engine), engine.info()
    finally:
        engine.close()
    costs, error = fit(measured)
    print(report.describe(report.machine()))
    a, b, c = costs.fixed * 1e3, costs.per_token * 1e6, costs.per_square * 1e9
    print(f"a step: {a:.2f} ms + {b:.1f} us a token + {c:.1f} ns a square of a length (fitted within {error:.0%})")
    print(f"{info.num_threads} cores\n")
    if error > _QUIET:
        print("NOTE: the costs do not fit well: something else ran on this machine; run it again\n")
    tokens = (arguments.least_tokens, min(arguments.most_tokens, info.max_seq_len))
    traffic = Traffic(arguments.texts, tokens, info.max_batch_tokens, info.num_threads, costs)
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
