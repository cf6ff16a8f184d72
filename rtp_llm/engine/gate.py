"""Admission: what may wait in each lane, and how long it will wait. Pure logic, no time, no threads."""

from collections.abc import Callable, Mapping

from rtp_llm.config import EngineConfig
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.errors import Overloaded, whole_seconds

# What a batch leaves of the weight of those before it: the rate follows the last ten or so.
_MEMORY = 0.9


class Gate:
    """Refuses what a model has no room for; measures how fast it is computed. Its owner holds a lock around changes.

    announced  by lane, the tokens that are expected of inputs which are not tokenised yet
    """

    def __init__(self, config: EngineConfig, num_cores: int) -> None:
        self._max_tokens = config.max_queued_tokens
        self._max_bulk = config.max_bulk_requests
        self._interactive_share = 1 - config.bulk_share / 100
        self._num_cores = num_cores
        self._tokens = self._core_seconds = 0.0
        self.announced = dict.fromkeys(Lane, 0)

    def announce(self, job: Job, num_tokens: int) -> None:
        """Tokens are expected of a job; below 0: they have come."""
        num_tokens = max(num_tokens, -job.announced)
        job.announced += num_tokens
        self.announced[job.lane] += num_tokens

    @property
    def tokens_per_second(self) -> float:
        """How fast the device works when all its cores do; 0 before the first batch."""
        return self._tokens / self._core_seconds * self._num_cores if self._core_seconds else 0.0

    def observe(self, num_tokens: int, seconds: float, num_cores: int) -> None:
        """A batch has been computed. A batch weighs what it cost, so that small ones do not pass for the whole."""
        self._tokens = _MEMORY * self._tokens + num_tokens
        self._core_seconds = _MEMORY * self._core_seconds + seconds * num_cores

    def check(
        self,
        lane: Lane,
        queued: Mapping[Lane, int],
        num_requests: int,
        others: Callable[[], Mapping[Lane, float]] = dict,
    ) -> None:
        """Overloaded where a lane that has `num_requests` in it may take no more; `queued`: tokens by lane.

        others  seconds of work, by lane, of the other models on the device
        """
        waiting = {name: tokens + self.announced[name] for name, tokens in queued.items()}
        if lane is Lane.BULK and num_requests >= self._max_bulk:
            # One of them ends before all of them do.
            wait = self.seconds_until_empty(lane, waiting, others()) / num_requests
            raise Overloaded(
                f"{num_requests} bulk requests are in flight, the most allowed (max_bulk_requests); "
                f"try again in {whole_seconds(wait)} s, or send fewer inputs at a time",
                retry_after=wait,
            )
        if waiting[lane] >= self._max_tokens:
            wait = self.seconds_until_empty(lane, waiting, others())
            raise Overloaded(
                f"{waiting[lane]} tokens are waiting in the {lane.value} lane, max_queued_tokens is "
                f"{self._max_tokens}; try again in {whole_seconds(wait)} s",
                retry_after=wait,
            )

    def seconds_of_work(self, queued: Mapping[Lane, int]) -> dict[Lane, float]:
        """What waits and is announced, by lane, in seconds of all cores; 0 before anything is measured."""
        rate = self.tokens_per_second
        return {name: (tokens + self.announced[name]) / rate if rate else 0.0 for name, tokens in queued.items()}

    def seconds_until_empty(
        self, lane: Lane, waiting: Mapping[Lane, int], others: Mapping[Lane, float] | None = None
    ) -> float:
        """When what waits in a lane will have been computed, if nothing more comes; 1 before anything is measured."""
        rate = self.tokens_per_second
        if not rate:
            return 1.0
        seconds = {name: tokens / rate + (others or {}).get(name, 0.0) for name, tokens in waiting.items()}
        own, other = seconds[lane], sum(work for name, work in seconds.items() if name is not lane)
        # While both lanes wait, each has its share; then the other has all.
        share = self._interactive_share if lane is Lane.INTERACTIVE else 1 - self._interactive_share
        return min(own / share if share else float("inf"), own + other)
