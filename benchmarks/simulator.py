"""The scheduler against a model of the device, in virtual time: `python -m benchmarks.simulator`.

A batch takes `fixed + per_token * tokens + per_square * sum(length ** 2)` seconds on one core; on several it takes that
divided by what they are worth together. Arrivals are given, so a run has the same result each time: an hour of load
takes seconds, and a change of the scheduler shows in the latencies without a machine's noise. Capacity planning: take
the costs from a measurement, the arrivals from your traffic, and read the latencies. With a gate, requests are admitted
and batches observed as in the engine, and what has a deadline is held to it (benchmarks.simulated_goodput).
"""

import argparse
import heapq
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks import report
from rtp_llm.core import Item, Request
from rtp_llm.engine.gate import Gate
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.scheduler import Grant, Scheduler
from rtp_llm.errors import Overloaded

_serial = itertools.count()


@dataclass(frozen=True)
class Costs:
    """Seconds of a batch on one core. The defaults are all-MiniLM-L6-v2's on a Zen 4 core: a query takes 3 ms.

    gain         of each further core that works on the same batch, as a part of the first one's speed
    per_request  of the event loop: it does one request after another, on a core that batches do not have meanwhile
    """

    fixed: float = 5e-4
    per_token: float = 2.2e-4
    per_square: float = 2e-8
    gain: float = 1.0
    per_request: float = 0.0

    def seconds(self, grant: Grant) -> float:
        """How long the batch takes on the cores that it was granted."""
        squares = sum(item.num_tokens**2 for item in grant.items)
        seconds = self.fixed + self.per_token * grant.num_tokens + self.per_square * squares
        return seconds / (1 + self.gain * (grant.num_cores - 1))


@dataclass(frozen=True)
class GpuCosts(Costs):
    """Seconds of a batch on a GPU, where batches run one after another and each must be enqueued first.

    The defaults are a guess at bge-base on an H200: 2.5 million tokens a second, and 0.6 ms of launches a batch.

    launch  what a thread of the host needs to enqueue a batch, while the device computes the one before
    """

    fixed: float = 3e-4
    per_token: float = 4e-7
    per_square: float = 1e-10
    launch: float = 6e-4


class _Devices:
    """When the batches in flight will be done: on cores each by itself, on a GPU one after another."""

    def __init__(self, num_devices: int, costs: Costs) -> None:
        self._costs = costs
        self._free_at = [0.0] * num_devices

    def end(self, seconds: float, now: float) -> float:
        """When a batch of so many seconds, taken now, is done."""
        if not isinstance(self._costs, GpuCosts):
            return now + seconds
        place = self._free_at.index(min(self._free_at))
        self._free_at[place] = max(now + self._costs.launch, self._free_at[place]) + seconds
        return self._free_at[place]


@dataclass(frozen=True)
class Arrival:
    """A request of inputs of these lengths; `model` as the scheduler numbers them, `patience` in seconds."""

    time: float
    lengths: Sequence[int]
    lane: Lane = Lane.INTERACTIVE
    model: int = 0
    patience: float = math.inf


class Answer(NamedTuple):
    """Seconds from an arrival to its answer, whether its deadline had not passed, and the tokens of its inputs."""

    seconds: float
    lane: Lane
    model: int
    is_in_time: bool = True
    num_tokens: int = 0


@dataclass
class Result:
    """The answers in their order; requests that were refused, and shed; core seconds that were worked."""

    answers: list[Answer] = field(default_factory=list)
    refused: int = 0
    shed: int = 0
    finished_at: float = 0.0
    num_tokens: int = 0
    busy: float = 0.0

    def latencies(self, lane: Lane, model: int | None = None) -> list[float]:
        """Seconds from arrival to answer of a lane's requests, of all models or of one."""
        return [answer.seconds for answer in self.answers if answer.lane is lane and model in (None, answer.model)]

    @property
    def in_time(self) -> list[Answer]:
        """Those that came before their deadline."""
        return [answer for answer in self.answers if answer.is_in_time]

    def percentile(self, lane: Lane, share: float, model: int | None = None) -> float:
        """Seconds within which `share` of them were answered."""
        return float(np.quantile(self.latencies(lane, model), share, method="higher"))


def simulate(
    scheduler: Scheduler,
    arrivals: Iterable[Arrival],
    costs: Costs,
    gate: Gate | None = None,
    noise: float = 0.0,
) -> Result:
    """Run all arrivals to their end; a model's batches cost what the scheduler takes its tokens to cost.

    gate   admits the requests of model 0 and observes its batches; None: all are taken in, nothing is foreseen
    noise  of a batch's seconds: the deviation of their logarithm
    """
    return _Simulation(scheduler, costs, gate, noise).run(arrivals)


class _Running(NamedTuple):
    """A batch that runs: heaps compare when it ends, then its serial number."""

    end: float
    serial: int
    begin: float
    grant: Grant


class _Simulation:
    """One run, from event to event."""

    def __init__(self, scheduler: Scheduler, costs: Costs, gate: Gate | None, noise: float) -> None:
        self._scheduler, self._costs, self._gate, self._noise = scheduler, costs, gate, noise
        self._random = random.Random(0)
        self._devices = _Devices(max(scheduler.num_devices, 1), costs)
        self._running: list[_Running] = []
        self._arrived: dict[Job, float] = {}
        self._result = Result()
        if gate is not None:
            scheduler.foresee(0, gate.core_seconds)

    def run(self, arrivals: Iterable[Arrival]) -> Result:
        """All of them, until the last is answered, refused or shed."""
        coming = _read(arrivals, self._costs.per_request)
        upcoming, now = next(coming, None), 0.0
        while upcoming is not None or self._running:
            if upcoming is not None and (not self._running or upcoming[0] <= self._running[0].end):
                now, arrival = upcoming
                self._arrive(arrival, now)
                upcoming = next(coming, None)
                if upcoming is not None and upcoming[0] == now:
                    continue
            else:
                now = self._end_batch()
            self._begin_batches(now)
        self._result.finished_at = now
        return self._result

    def _arrive(self, arrival: Arrival, now: float) -> None:
        per_request = self._costs.per_request
        if not self._scheduler.free_cores:
            self._running = _delayed(self._running, per_request / self._scheduler.num_cores)
        self._result.busy += per_request
        if self._is_refused(arrival, now):
            self._result.refused += 1
        else:
            self._arrived[_add(self._scheduler, arrival)] = arrival.time

    def _is_refused(self, arrival: Arrival, now: float) -> bool:
        if self._gate is None or arrival.model:
            return False
        queued = {lane: queue.tokens for lane, queue in self._scheduler.models[0].lanes.items()}
        left = arrival.time + arrival.patience - now
        try:
            self._gate.check(arrival.lane, queued, 0)
            if math.isfinite(left):
                running = partial(self._scheduler.seconds_running, now)
                self._gate.check_time(arrival.lane, queued, left, partial(sum, arrival.lengths), running)
        except Overloaded:
            return True
        return left <= 0

    def _begin_batches(self, now: float) -> None:
        while (taken := self._scheduler.next_batch(now)) is not None:
            seconds = self._costs.seconds(taken) * self._scheduler.models[taken.model].token_cost
            if self._noise:
                seconds *= self._random.lognormvariate(0.0, self._noise)
            self._result.busy += seconds * taken.num_cores
            self._result.num_tokens += taken.num_tokens
            heapq.heappush(self._running, _Running(self._devices.end(seconds, now), next(_serial), now, taken))
        for job in self._scheduler.take_expired():
            job.cancelled = True
            del self._arrived[job]
            self._result.shed += 1
        if self._scheduler.queued_items and self._scheduler.free_cores:
            raise AssertionError("a core is idle although work waits")

    def _end_batch(self) -> float:
        """-> when the next one of those that run has ended."""
        now, _, begin, grant = heapq.heappop(self._running)
        self._scheduler.release(grant)
        if self._gate is not None and not grant.model:
            self._gate.observe(grant.num_tokens, now - begin, grant.num_cores)
        for job in (item.owner for group in grant.groups for item in group):
            job.remaining -= 1
            if job.remaining == 0 and not job.cancelled:
                is_in_time = now <= job.request.deadline
                seconds, num_tokens = now - self._arrived.pop(job), job.total_tokens
                self._result.answers.append(Answer(seconds, job.lane, job.model, is_in_time, num_tokens))
        return now


def _read(arrivals: Iterable[Arrival], seconds: float) -> Iterator[tuple[float, Arrival]]:
    """The arrivals, each with the time when the event loop has done its part of it."""
    now = 0.0
    for arrival in sorted(arrivals, key=lambda arrival: arrival.time):
        now = max(now, arrival.time) + seconds
        yield now, arrival


def _delayed(running: list[_Running], seconds: float) -> list[_Running]:
    """The same heap, with all ends so much later: which core the event loop has taken is not known."""
    return [batch._replace(end=batch.end + seconds) for batch in running]


def _add(scheduler: Scheduler, arrival: Arrival) -> Job:
    count = len(arrival.lengths)
    job = Job(Request(inputs=["x"] * count, deadline=arrival.time + arrival.patience), Future(), lane=arrival.lane)
    job.model = arrival.model
    # Ids are serial numbers, so that no two items are identical.
    items = [Item(np.full(n, next(_serial), np.int32), i, owner=job) for i, n in enumerate(arrival.lengths)]
    job.total_tokens = sum(arrival.lengths)
    scheduler.add(arrival.lane, items, arrival.model)
    return job


def queries(rate: float, seconds: float, seed: int = 0) -> Iterator[Arrival]:
    """Single texts of 4 to 20 tokens at `rate` a second, as a Poisson process."""
    rng, now = random.Random(seed), 0.0
    while (now := now + rng.expovariate(rate)) < seconds:
        yield Arrival(now, [rng.randint(4, 20)])


def bulk(num_texts: int, at: float = 0.0, lane: Lane = Lane.BULK, seed: int = 1) -> Iterator[Arrival]:
    """A job of passages of 20 to 250 tokens, as requests of 256 texts that are all there at once."""
    rng = random.Random(seed)
    lengths = [min(250, max(20, round(rng.gammavariate(3.2, 32)))) for _ in range(num_texts)]
    for start in range(0, num_texts, 256):
        yield Arrival(at, lengths[start : start + 256], lane)


def main(argv: Sequence[str] | None = None) -> None:
    """Single queries alone, then beside a bulk job in a lane of its own, then beside one in the same lane."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator", description=__doc__)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=20.0, help="queries a second")
    parser.add_argument("--bulk-texts", type=int, default=100_000)
    parser.add_argument("--fixed-ms", type=float, default=Costs.fixed * 1e3, help="of a batch")
    parser.add_argument("--token-us", type=float, default=Costs.per_token * 1e6)
    parser.add_argument("--square-ns", type=float, default=Costs.per_square * 1e9, help="for each length, squared")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs instead of cores, with the costs of one")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    arguments = parser.parse_args(argv)
    costs = Costs(arguments.fixed_ms / 1e3, arguments.token_us / 1e6, arguments.square_ns / 1e9)
    num_cores = arguments.cores
    if arguments.gpus:
        costs, num_cores = GpuCosts(), 2 * arguments.gpus
    jobs = {
        "queries alone": [],
        "beside bulk work": list(bulk(arguments.bulk_texts)),
        "bulk work in the same lane": list(bulk(arguments.bulk_texts, lane=Lane.INTERACTIVE)),
    }
    rows, results = [], {}
    for name, work in jobs.items():
        scheduler = Scheduler(arguments.batch_tokens, num_cores, num_devices=arguments.gpus)
        result = simulate(scheduler, [*work, *queries(arguments.rate, 60.0)], costs)
        p50, p99, worst = (result.percentile(Lane.INTERACTIVE, share) * 1e3 for share in (0.5, 0.99, 1.0))
        rate = result.num_tokens / result.finished_at
        rows.append([name, f"{p50:.1f}", f"{p99:.1f}", f"{worst:.1f}", f"{rate:.0f}", f"{result.finished_at:.0f}"])
        results[name] = {"p50_ms": p50, "p99_ms": p99, "max_ms": worst, "tokens_per_second": rate}
    print(report.table(("", "p50 ms", "p99 ms", "longest ms", "tokens/s", "seconds"), rows))
    report.finish({"benchmark": "simulator", **vars(arguments), "results": results}, arguments.json)


if __name__ == "__main__":
    main()
