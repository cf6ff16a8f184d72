"""Which items make the next batch, and on how many cores: pure logic, no threads; the time is an argument.

A batch forms when cores are free and not before, so it always holds what is waiting then; there is no timer. Within a
lane the oldest item goes first, so nothing starves, and the batch is filled with the items nearest to it in length.
While cores are free, waiting work is shared out between them: a core a batch where there are items enough, several
cores on one batch where there are not, since threads that work on one batch wait for each other. Shares shrink with the
queue, so that the last batches end together. Where each core is a batch in flight on a device (a GPU), batches do not
work faster together: one core a batch, and what waits is shared out between devices alone.

The interactive lane overtakes the bulk lane, which keeps a guaranteed share of the tokens: while both wait, bulk work
is owed its share of every interactive batch, and goes first as soon as a whole step is owed. Since a batch that runs is
not interrupted, bulk steps are short while interactive work keeps coming, and whole when it has not come for a while;
a request that takes longer itself than a short step is not what they are short for.

Several models share the device: a batch holds items of one model, and of a lane's models that have work the one that
has had least goes first, counted from when it last had none to do (start-time fair queuing; Goyal et al., 1996). So a
model that is sent more than its share waits for itself, and one that is sent little hardly waits. Shares are counted in
work: a large model's token weighs more than a small one's.

What is computed too late is computed for nobody, and under a load that cannot be met the oldest is always about to be
late. So a step is only begun where its oldest place is expected to be done in time, by what steps of that size have
taken; else it is made smaller, or the place is shed with all that its requests have waiting. Whoever has less time than
the step takes is passed over. What others cannot be computed instead of is computed as long as there is time at all:
cores have nothing better to do, and what a step takes goes on being observed, however wrong the forecast has become.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from math import inf
from typing import NamedTuple

from rtp_llm.core import Item
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.lane_queue import LaneQueue, Place
from rtp_llm.engine.step_time import StepTime

# Below this many tokens a batch is bound by reading the weights, which several cores on one batch do only once.
_LEAST_TOKENS = 64
# Of a GPU: below this part of its budget a batch is bound by its launches, and takes as long as a smaller one.
_DEVICE_STEP = 8
# Bulk steps are this part of the budget while interactive work keeps coming, ...
_SHORT_STEP = 4
# ... which is the case until bulk work of so many budgets has gone by without any.
_CALM_AFTER = 32
BULK_SHARE = 0.2


class Grant(NamedTuple):
    """A batch and the cores that it may use until `Scheduler.release`.

    groups      identical items together; one of each group is computed, for all of them
    num_tokens  what is computed: each group once, each prefix once
    model       whose items they are, as `Scheduler.add_model` numbers them
    ends_at     when it is expected to be done
    """

    groups: list[list[Item]]
    num_cores: int
    num_tokens: int
    lane: Lane
    model: int = 0
    ends_at: float = 0.0

    @property
    def items(self) -> list[Item]:
        """One item of each group."""
        return [group[0] for group in self.groups]


class Step(NamedTuple):
    """What the next batch may be.

    budget   most own tokens, beside the oldest place
    ends_at  when it is done; who has less time is not in it
    pressed  not all that waits can be computed before the oldest place's deadline
    """

    num_cores: int
    budget: int
    ends_at: float
    pressed: bool = False


class ModelQueue:
    """What waits for one model, by lane, the token budget of its steps, and what a token costs beside other models'.

    time  what its steps take
    had  by lane, the work that the model has had; of one that was idle, no less than those have had that were not
    """

    def __init__(self, batch_tokens: int, arrivals: Iterator[int], token_cost: float) -> None:
        self.batch_tokens = batch_tokens
        self.token_cost = token_cost
        self.time = StepTime()
        self.lanes = {lane: LaneQueue(arrivals) for lane in Lane}
        self.had = dict.fromkeys(Lane, 0.0)


class Scheduler:
    """The queue of one device. Not thread-safe: its owner holds a lock around each call.

    batch_tokens  the budget of a step of the first model, number 0, whose tokens cost 1; `add_model` is for more
    bulk_share    of the work that is done while both lanes wait, the part that the bulk lane has for certain
    num_devices   0: several cores may work on one batch; else each core is a batch in flight on one of so many devices
    """

    def __init__(self, batch_tokens: int, num_cores: int, bulk_share: float = BULK_SHARE, num_devices: int = 0) -> None:
        self.num_devices = num_devices
        self.num_cores = num_cores
        self.free_cores = num_cores
        self.bulk_share = bulk_share
        self.models: list[ModelQueue] = []
        self._arrivals = count()
        self._owed = 0.0
        # By lane, what the model whose turn it was last had had before that turn.
        self._reached = dict.fromkeys(Lane, 0.0)
        self._calm_budgets = float(_CALM_AFTER)
        # Of each batch that runs, when it is expected to end, and its cores; never changed, but replaced as a whole.
        self._running: tuple[tuple[float, int], ...] = ()
        self.add_model(batch_tokens)

    def add_model(self, batch_tokens: int, token_cost: float = 1.0) -> int:
        """Another model -> its number."""
        self.models.append(ModelQueue(batch_tokens, self._arrivals, token_cost))
        return len(self.models) - 1

    def foresee(self, model: int, core_seconds: Callable[[float], float]) -> None:
        """From now on a model's deadlines are held by what a core needs for a step of so many tokens; 0: not known."""
        self.models[model].time = StepTime(core_seconds)

    @property
    def queued_tokens(self) -> int:
        return sum(queue.tokens for model in self.models for queue in model.lanes.values())

    @property
    def queued_items(self) -> int:
        return sum(queue.items for model in self.models for queue in model.lanes.values())

    def add(self, lane: Lane, items: Sequence[Item], model: int = 0) -> None:
        """Queue items of one job; their `owner` counts its own queued tokens."""
        queue = self.models[model]
        if lane is Lane.INTERACTIVE:
            num_tokens = sum(item.num_own_tokens for item in items)
            if 0 < num_tokens <= _short_step(queue.batch_tokens):
                self._calm_budgets = 0.0
        if queue.lanes[lane].items == 0:
            queue.had[lane] = max(queue.had[lane], self._reached[lane])
        queue.lanes[lane].add(items)

    def drop(self, job: Job) -> None:
        """Forget the waiting items of a job that is `done`."""
        self.models[job.model].lanes[job.lane].drop(job)

    def take_expired(self) -> list[Job]:
        """Jobs that were given up because they would be too late; the caller fails them."""
        late = [queue for model in self.models for queue in model.lanes.values() if queue.expired]
        expired = [job for queue in late for job in queue.expired]
        for queue in late:
            queue.expired = []
        return expired

    def next_batch(self, now: float = 0.0) -> Grant | None:
        """The next batch, or None when nothing waits or no core is free; `now` as in Request.deadline."""
        while self.free_cores and (chosen := self._choose(now)) is not None:
            lane, number, oldest = chosen
            step = self._plan(lane, self.models[number], oldest, now)
            if step is not None:
                return self._begin(step, lane, number, oldest, now)
            self.models[number].lanes[lane].shed(oldest)
        return None

    def release(self, grant: Grant) -> None:
        """The batch is done; its cores are free again."""
        self.free_cores += grant.num_cores
        running, ended = list(self._running), (grant.ends_at, grant.num_cores)
        if ended in running:
            running.remove(ended)
        self._running = tuple(running)

    def seconds_running(self, now: float) -> float:
        """What is left of the batches that run, in seconds of all cores. May be asked for without the lock."""
        return sum(max(ends_at - now, 0.0) * num_cores for ends_at, num_cores in self._running) / self.num_cores

    def _plan(self, lane: Lane, model: ModelQueue, oldest: Place, now: float) -> Step | None:
        """The step that the oldest place would be in; None: it would be too late, and others can have the cores."""
        queue, first = model.lanes[lane], oldest.items[0]
        # NOTE: shares for all cores, the busy ones too: they will be free soon, and the last batches end together.
        num_cores = 1
        if not self.num_devices:
            num_cores = max(self.free_cores // self._shares(self.queued_items, self.queued_tokens), 1)
        share = -(-queue.tokens // self._shares(queue.items, queue.tokens))
        budget = min(share, self._step(lane, model.batch_tokens))
        num_tokens = max(min(budget, queue.tokens), first.num_tokens)
        left = 0.0 if self._is_too_much(oldest, model.time, now) else oldest.deadline - now
        for cores in (num_cores,) if self.num_devices else (num_cores, self.free_cores):
            fitting = model.time.fitting(num_tokens, first.num_tokens, cores, left)
            if fitting:
                own = budget if fitting == num_tokens else fitting - first.num_tokens + oldest.num_own_tokens
                pressed = model.time.core_seconds(queue.tokens) > left * self.num_cores
                return Step(cores, own, now + model.time.seconds(fitting, cores), pressed)
        if self.queued_items > sum(job.queued_items for job in oldest.owners):
            return None
        return Step(num_cores, budget, -inf)

    def _is_too_much(self, place: Place, time: StepTime, now: float) -> bool:
        """Whether all cores together cannot compute in time what waits, and is still to come, of who waits for it."""

        def takes(num_tokens: int) -> float:
            return time.core_seconds(num_tokens) / self.num_cores

        for job in place.owners:
            left = job.request.deadline - now
            # Identical items are counted one by one until it matters.
            if takes(job.queued_tokens + job.announced) <= left or takes(job.tokens_to_compute) <= left:
                return False
        return True

    def _begin(self, step: Step, lane: Lane, number: int, oldest: Place, now: float) -> Grant:
        """Take a step's items out of the queue, and its cores."""
        model = self.models[number]
        queue = model.lanes[lane]
        groups, num_tokens = self._fill(queue, oldest, step, model.batch_tokens, now)
        queue.end_step()
        self._settle(lane, num_tokens, model)
        self.free_cores -= step.num_cores
        ends_at = now + model.time.core_seconds(num_tokens) / step.num_cores
        self._running += ((ends_at, step.num_cores),)
        return Grant(groups, step.num_cores, num_tokens, lane, number, ends_at)

    def _shares(self, num_items: int, num_tokens: int) -> int:
        if self.num_devices:
            least = max(self.models[0].batch_tokens // _DEVICE_STEP, 1)
            return max(min(self.num_devices, num_items, num_tokens // least), 1)
        return max(min(self.num_cores, num_items, num_tokens // _LEAST_TOKENS), 1)

    def _choose(self, now: float) -> tuple[Lane, int, Place] | None:
        """The lane whose turn it is, its model whose turn it is, and the oldest place of that."""
        urgent, bulk = (self._first(lane, now) for lane in (Lane.INTERACTIVE, Lane.BULK))
        if urgent is None or bulk is None:
            self._owed = 0.0
        if bulk is None:
            return None if urgent is None else (Lane.INTERACTIVE, *urgent)
        model, place = self.models[bulk[0]], bulk[1]
        step = min(model.lanes[Lane.BULK].tokens, self._step(Lane.BULK, model.batch_tokens))
        work = max(step, place.num_own_tokens) * model.token_cost
        if urgent is None or self._owed >= work * (1 - self.bulk_share):
            return Lane.BULK, *bulk
        return Lane.INTERACTIVE, *urgent

    def _first(self, lane: Lane, now: float) -> tuple[int, Place] | None:
        """The model whose turn it is in a lane, and the place there that has waited longest."""
        places = ((number, model.lanes[lane].oldest(now)) for number, model in enumerate(self.models))
        waiting = [(number, place) for number, place in places if place is not None]
        return min(waiting, key=lambda one: (self.models[one[0]].had[lane], one[1].arrival)) if waiting else None

    def _settle(self, lane: Lane, num_tokens: int, model: ModelQueue) -> None:
        """Note who had how much: over time, bulk work that waits gets its share, and so does each model."""
        work = num_tokens * model.token_cost
        self._reached[lane] = model.had[lane]
        model.had[lane] += work
        if lane is Lane.BULK:
            self._owed = max(self._owed - work * (1 - self.bulk_share), 0.0)
            self._calm_budgets += num_tokens / model.batch_tokens
        else:
            self._owed += work * self.bulk_share

    def _step(self, lane: Lane, batch_tokens: int) -> int:
        """The token budget of a step of this lane."""
        is_calm = self._calm_budgets >= _CALM_AFTER
        return batch_tokens if lane is Lane.INTERACTIVE or is_calm else _short_step(batch_tokens)

    def _fill(
        self, queue: LaneQueue, oldest: Place, step: Step, batch_tokens: int, now: float
    ) -> tuple[list[list[Item]], int]:
        """The oldest place, then those nearest to it in length while they fit the budget.

        A prefix is computed once, for all of its items; the last one taken may exceed the budget. Where deadlines press
        the rest of the oldest place's request goes first: of many that are begun together none would be done in time.
        """
        first = oldest.items[0]
        own_places = iter([place for job in oldest.owners for place in job.places] if step.pressed else ())
        groups, own_tokens, prefixes = [queue.take(oldest)], oldest.num_own_tokens, {first.prefix}
        prefix_tokens = first.num_tokens - own_tokens
        while True:
            room = min(step.budget, batch_tokens - prefix_tokens) - own_tokens
            place = _fitting(own_places, room) or queue.nearest(oldest.num_own_tokens, room, now, step.ends_at)
            if place is None:
                return groups, own_tokens + prefix_tokens
            item = place.items[0]
            groups.append(queue.take(place))
            own_tokens += place.num_own_tokens
            if item.prefix not in prefixes:
                prefixes.add(item.prefix)
                prefix_tokens += item.num_tokens - item.num_own_tokens


def _fitting(places: Iterator[Place], room: int) -> Place | None:
    """The first that still waits and has room; those before it are looked at no more."""
    if room <= 0:
        return None
    return next((place for place in places if place.items and place.num_own_tokens <= room), None)


def _short_step(batch_tokens: int) -> int:
    return -(-batch_tokens // _SHORT_STEP)
