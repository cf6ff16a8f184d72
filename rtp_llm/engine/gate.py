"""Admission: what may wait in each lane, and how long it will wait. Pure logic, no time, no threads."""

from collections.abc import Callable, Mapping, Sequence

from rtp_llm.config import EngineConfig
from rtp_llm.engine.drain_rate import DrainRate
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.errors import Overloaded, whole_seconds

# What is expected to take more than this part of the time it has is refused. What is let in must not only be computed
# in time: an event loop that is busy refusing others must send its answer, and the steps of a request of several inputs
# wait for each other. NOTE: at 1.0 a sixth of the capacity was lost to such requests; at 0.65 a load of half the
# capacity was refused in part.
_LATE = 0.8


class Gate:
    """Refuses what a model has no room for, and says when it will have. Its owner holds a lock around changes.

    batch_tokens  the budget of a step, by which a queue is computed
    announced     by lane, the tokens that are expected of inputs which are not tokenised yet
    """

    def __init__(self, config: EngineConfig, num_cores: int, batch_tokens: int) -> None:
        self._max_tokens = config.max_queued_tokens
        self._max_bulk = config.max_bulk_requests
        self._interactive_share = 1 - config.bulk_share / 100
        self._num_cores = num_cores
        self._batch_tokens = batch_tokens
        self._rate = DrainRate()
        self.announced = dict.fromkeys(Lane, 0)

    def announce(self, job: Job, num_tokens: int) -> None:
        """Tokens are expected of a job; below 0: they have come."""
        num_tokens = max(num_tokens, -job.announced)
        job.announced += num_tokens
        self.announced[job.lane] += num_tokens

    @property
    def tokens_per_second(self) -> float:
        """How fast the device works when all its cores have full steps; 0 before the first batch."""
        return self._rate.of(self._batch_tokens) * self._num_cores

    def core_seconds(self, num_tokens: float) -> float:
        """What one core needs for a batch of so many tokens; 0 before the first batch."""
        return self._rate.core_seconds(num_tokens)

    def observe(self, num_tokens: int, seconds: float, num_cores: int) -> None:
        """A batch has been computed."""
        self._rate.observe(num_tokens, seconds * num_cores)

    def check(
        self,
        lane: Lane,
        queued: Mapping[Lane, int],
        num_requests: int,
        others: Callable[[], Sequence[Mapping[Lane, float]]] = tuple,
    ) -> None:
        """Overloaded where a lane may take no more; `queued`: tokens by lane.

        num_requests  in flight in this lane, which the bulk lane limits
        others        seconds of work, by lane, of each other model on the device
        """
        if lane is Lane.BULK and num_requests >= self._max_bulk:
            # One of them ends before all of them do.
            wait = self.seconds_until_empty(lane, self._waiting(queued), others()) / num_requests
            raise Overloaded(
                f"{num_requests} bulk requests are in flight, the most allowed (max_bulk_requests); "
                f"try again in {whole_seconds(wait)} s, or send fewer inputs at a time",
                retry_after=wait,
            )
        tokens = queued[lane] + self.announced[lane]
        if tokens >= self._max_tokens:
            wait = self.seconds_until_empty(lane, self._waiting(queued), others())
            raise Overloaded(
                f"{tokens} tokens are waiting in the {lane.value} lane, max_queued_tokens is "
                f"{self._max_tokens}; try again in {whole_seconds(wait)} s",
                retry_after=wait,
            )

    def check_time(
        self,
        lane: Lane,
        queued: Mapping[Lane, int],
        seconds_left: float,
        num_tokens: Callable[[], int],
        running: Callable[[], float],
        others: Callable[[], Sequence[Mapping[Lane, float]]] = tuple,
    ) -> None:
        """Overloaded where a request would be too late and leaves its place to others; the rest is as in `check`.

        seconds_left  until its deadline
        num_tokens    about how many it has itself
        running       what is left of the batches that are being computed, in seconds of all cores
        """
        tokens = queued[lane] + self.announced[lane]
        if not tokens or not self._rate.is_known:
            return
        waiting = self._waiting(queued)
        waiting[lane] += num_tokens()
        wait = running() + self.seconds_until_empty(lane, waiting, others())
        after = wait - _LATE * seconds_left
        if after > 0:
            raise Overloaded(
                f"{tokens} tokens are waiting in the {lane.value} lane; the request may take {wait / _LATE:.3g} s, its "
                f"deadline is in {seconds_left:.3g} s; allow more, or try again in {whole_seconds(after)} s",
                retry_after=after,
            )

    def seconds_of_work(self, queued: Mapping[Lane, int]) -> dict[Lane, float]:
        """What waits and is announced, by lane, in seconds of all cores; 0 before anything is measured."""
        waiting = self._waiting(queued)
        rate = self._rate_for(sum(waiting.values()))
        return {name: tokens / rate if rate else 0.0 for name, tokens in waiting.items()}

    def seconds_until_empty(
        self, lane: Lane, waiting: Mapping[Lane, int], others: Sequence[Mapping[Lane, float]] = ()
    ) -> float:
        """When what waits in a lane will have been computed, if nothing more comes; 1 before anything is measured."""
        total = sum(waiting.values())
        rate = self._rate_for(total)
        if not rate:
            return 1.0
        own_seconds = own = waiting[lane] / rate
        other = (total - waiting[lane]) / rate
        for work in others:
            # Models have equal shares of a lane: before this one is done, no other has had more of it.
            own += min(work[lane], own_seconds)
            other += sum(work.values()) - work[lane]
        # While both lanes wait, each has its share; then the other has all.
        share = self._interactive_share if lane is Lane.INTERACTIVE else 1 - self._interactive_share
        return min(own / share if share else float("inf"), own + other)

    def _waiting(self, queued: Mapping[Lane, int]) -> dict[Lane, int]:
        return {lane: tokens + self.announced[lane] for lane, tokens in queued.items()}

    def _rate_for(self, num_tokens: int) -> float:
        """Tokens a second where so many wait, which all cores share."""
        return self._rate.of(min(num_tokens / self._num_cores, self._batch_tokens)) * self._num_cores
