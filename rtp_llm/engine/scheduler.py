"""Which items make the next batch, and on how many cores: pure logic, no time, no threads.

A batch forms when cores are free and not before, so it always holds what is waiting then; there is no timer. The oldest
item goes first, so nothing starves, and the batch is filled with the items nearest to it in length. While cores are
free, waiting work is shared out between them: a core a batch where there are items enough, several cores on one batch
where there are not, since threads that work on one batch wait for each other. Shares shrink with the queue, so that the
last batches end together.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from rtp_llm.core import Item
from rtp_llm.engine.job import Job

# Below this many tokens a batch is bound by reading the weights, which several cores on one batch do only once.
_LEAST_TOKENS = 64


class Grant(NamedTuple):
    """A batch and the cores that it may use until `Scheduler.release`."""

    items: list[Item]
    num_cores: int
    num_tokens: int


class Scheduler:
    """The queue of one device. Not thread-safe: its owner holds a lock around each call."""

    def __init__(self, batch_tokens: int, num_cores: int) -> None:
        self.batch_tokens = batch_tokens
        self.num_cores = num_cores
        self.free_cores = num_cores
        self.queued_tokens = 0
        self.queued_items = 0
        self._arrivals: deque[Item] = deque()
        self._by_length: dict[int, deque[Item]] = {}
        self._lengths: list[int] = []

    def add(self, items: Iterable[Item]) -> None:
        """Queue items of one job; their `owner` counts its own queued tokens."""
        for item in items:
            length = item.num_own_tokens
            item.queued = True
            self._count(item, 1)
            self._arrivals.append(item)
            bucket = self._by_length.get(length)
            if bucket is None:
                bucket = self._by_length[length] = deque()
                insort(self._lengths, length)
            bucket.append(item)

    def drop(self, job: Job) -> None:
        """Forget the waiting items of a job that is `done`; they are skipped when their turn comes."""
        self.queued_tokens -= job.queued_tokens
        self.queued_items -= job.queued_items
        job.queued_tokens = job.queued_items = 0

    def next_batch(self) -> Grant | None:
        """The next batch, or None when nothing waits or no core is free."""
        oldest = self._oldest()
        if oldest is None or self.free_cores == 0:
            return None
        # NOTE: shares for all cores, the busy ones too: they will be free soon, and the last batches end together.
        shares = max(min(self.num_cores, self.queued_items, self.queued_tokens // _LEAST_TOKENS), 1)
        num_cores = max(self.free_cores // shares, 1)
        items, num_tokens = self._fill(oldest, -(-self.queued_tokens // shares))
        self.free_cores -= num_cores
        return Grant(items, num_cores, num_tokens)

    def release(self, grant: Grant) -> None:
        """The batch is done; its cores are free again."""
        self.free_cores += grant.num_cores

    def _oldest(self) -> Item | None:
        while self._arrivals:
            item = self._arrivals[0]
            if item.queued and not item.owner.done:
                return item
            self._arrivals.popleft()
        # Whatever is left in the buckets belongs to jobs that are done.
        self._by_length.clear()
        self._lengths.clear()
        return None

    def _fill(self, oldest: Item, share: int) -> tuple[list[Item], int]:
        """The oldest item, then those nearest to it in length while they fit the share and the budget.

        A prefix is computed once, for all of its items; the last one taken may exceed the budget.
        """
        self._take(oldest)
        items, own_tokens, prefixes = [oldest], oldest.num_own_tokens, {oldest.prefix}
        prefix_tokens = oldest.num_tokens - own_tokens
        while True:
            room = min(share, self.batch_tokens - prefix_tokens) - own_tokens
            item = self._nearest(oldest.num_own_tokens, room)
            if item is None:
                return items, own_tokens + prefix_tokens
            self._take(item)
            items.append(item)
            own_tokens += item.num_own_tokens
            if item.prefix not in prefixes:
                prefixes.add(item.prefix)
                prefix_tokens += item.num_tokens - item.num_own_tokens

    def _take(self, item: Item) -> None:
        item.queued = False
        self._count(item, -1)

    def _count(self, item: Item, sign: int) -> None:
        """Every queued item is counted here and at its job."""
        for counter in (self, item.owner):
            counter.queued_tokens += sign * item.num_own_tokens
            counter.queued_items += sign

    def _nearest(self, length: int, room: int) -> Item | None:
        """A waiting item of at most `room` own tokens, as near as can be to `length`."""
        while True:
            place = bisect_left(self._lengths, length)
            above = self._lengths[place] if place < len(self._lengths) else None
            below = self._lengths[place - 1] if place else None
            if above is not None and above > room:
                above = None
            if below is not None and below > room:
                fitting = bisect_left(self._lengths, room + 1)
                below = self._lengths[fitting - 1] if fitting else None
            if above is None and below is None:
                return None
            nearest = above if below is None or (above is not None and above - length <= length - below) else below
            assert nearest is not None
            item = self._pop(nearest)
            if item is not None:
                return item

    def _pop(self, length: int) -> Item | None:
        """First live item of this length; an emptied bucket is removed."""
        bucket = self._by_length[length]
        while bucket:
            item = bucket.popleft()
            if item.queued and not item.owner.done:
                return item
        del self._by_length[length]
        self._lengths.pop(bisect_left(self._lengths, length))
        return None
