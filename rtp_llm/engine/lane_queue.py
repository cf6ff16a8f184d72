"""What waits in one lane, found by age and by length; identical inputs wait, and are computed, as one."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import count
from typing import TypeAlias

from rtp_llm.core import Item, TaskType
from rtp_llm.engine.job import Job
from rtp_llm.engine.length_index import LengthIndex

# All that an item's rows depend on.
Key: TypeAlias = tuple[bytes, bytes | None, int, bytes, tuple[int, ...], int, int, tuple[TaskType, ...]]


def key_of(item: Item) -> Key:
    """Items of the same key have the same rows, bit for bit."""
    types = item.token_type_ids
    return (
        item.input_ids.tobytes(),
        None if types is None else types.tobytes(),
        item.prompt_length,
        item.prefix,
        item.parts,
        item.num_unseen,
        item.adapter,
        item.tasks,
    )


class Place:
    """A place in the queue, of one item or of several that are identical; of none once it is taken or given up.

    arrival  its number among the places of all queues of a device
    """

    __slots__ = ("arrival", "items", "key", "num_own_tokens")

    def __init__(self, item: Item, key: Key, arrival: int) -> None:
        self.arrival = arrival
        self.items = [item]
        self.key = key
        self.num_own_tokens = item.num_own_tokens

    @property
    def deadline(self) -> float:
        """Until when anybody waits for it."""
        deadline: float = max(item.owner.request.deadline for item in self.items)
        return deadline

    @property
    def owners(self) -> list[Job]:
        """The jobs that wait for it, each once."""
        return list(dict.fromkeys(item.owner for item in self.items))


class LaneQueue:
    """A model's places in a lane. `tokens` and `items` count what waits, identical ones too; so do the jobs' counters.

    expired   jobs that were found to be too late; nothing of them waits any more
    arrivals  numbers the places, over all queues that share it
    """

    def __init__(self, arrivals: Iterator[int] | None = None) -> None:
        self.tokens = 0
        self.items = 0
        self.expired: list[Job] = []
        self._numbers = arrivals or count()
        # By age. A place leaves when it is taken or given up, wherever it stands: it holds what may be a whole request.
        self._arrivals: OrderedDict[Place, None] = OrderedDict()
        self._by_length = LengthIndex[Place]()
        self._passed_over: list[Place] = []
        self._by_key: dict[Key, Place] = {}

    def add(self, items: Iterable[Item]) -> None:
        """Queue items; one that is identical to a waiting one shares its place."""
        for item in items:
            item.queued = True
            self._count(item, 1)
            key = key_of(item)
            place = self._by_key.get(key)
            if place is None:
                place = self._open(item, key)
            else:
                place.items.append(item)
            item.owner.places.append(place)

    def drop(self, job: Job) -> None:
        """Forget the waiting items of a job that is `done`, now: it may be long until their turn comes."""
        self.tokens -= job.queued_tokens
        self.items -= job.queued_items
        job.queued_tokens = job.queued_items = 0
        places, job.places = job.places, []
        for place in places:
            others = [item for item in place.items if item.owner is not job]
            if len(others) < len(place.items):
                place.items = others
                if not others:
                    self._close(place)

    def oldest(self, now: float) -> Place | None:
        """The place that has waited longest; None when nothing waits."""
        while self._arrivals:
            place = next(iter(self._arrivals))
            if self._is_wanted(place, now):
                return place
        return None

    def take(self, place: Place) -> list[Item]:
        """The items of a place, which wait no longer."""
        self._close(place)
        items, place.items = place.items, []
        for item in items:
            item.queued = False
            self._count(item, -1)
            if not item.owner.queued_items:
                item.owner.places.clear()
        return items

    def nearest(self, length: int, room: int, now: float, done_at: float = -math.inf) -> Place | None:
        """A place of at most `room` own tokens, as near as can be to `length`; the caller takes it.

        Those that nobody waits for until `done_at` are passed over, until `end_step`.
        """
        while (place := self._by_length.nearest(length, room)) is not None:
            if not self._is_wanted(place, now):
                continue
            if place.deadline >= done_at:
                return place
            self._by_length.discard(place)
            self._passed_over.append(place)
        return None

    def end_step(self) -> None:
        """What was passed over for this step may be in the next."""
        if self._passed_over:
            self._by_length.put_back(place for place in self._passed_over if place.items)
            self._passed_over = []

    def shed(self, place: Place) -> None:
        """Give up all jobs that wait for it, which will be too late."""
        self._give_up(place.owners)

    def _open(self, item: Item, key: Key) -> Place:
        place = self._by_key[key] = Place(item, key, next(self._numbers))
        self._arrivals[place] = None
        self._by_length.add(place)
        return place

    def _is_wanted(self, place: Place, now: float) -> bool:
        """Whether anybody still waits for it; jobs that do not are dropped, and with the last its place."""
        leaving = [item.owner for item in place.items if item.owner.done or item.owner.request.deadline <= now]
        if not leaving:
            return True
        self._give_up(dict.fromkeys(leaving))
        return bool(place.items)

    def _give_up(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if not job.done:
                self.expired.append(job)
            self.drop(job)

    def _close(self, place: Place) -> None:
        del self._arrivals[place]
        del self._by_key[place.key]
        self._by_length.discard(place)

    def _count(self, item: Item, sign: int) -> None:
        """Every queued item is counted here and at its job."""
        tokens, job = sign * item.num_own_tokens, item.owner
        self.tokens += tokens
        self.items += sign
        job.queued_tokens += tokens
        job.queued_items += sign
