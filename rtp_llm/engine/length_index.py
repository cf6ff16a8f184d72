"""What waits, found by its length: the nearest one, and of those the one that came first."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, Protocol, TypeVar


class Measured(Hashable, Protocol):
    """What has a length in tokens."""

    num_own_tokens: int


Entry = TypeVar("Entry", bound=Measured)


class LengthIndex(Generic[Entry]):
    """Entries in buckets of the same length, each in the order in which they came."""

    def __init__(self) -> None:
        self._buckets: dict[int, OrderedDict[Entry, None]] = {}
        self._lengths: list[int] = []  # of the buckets, ascending

    def add(self, entry: Entry) -> None:
        """It is the last of its length."""
        length = entry.num_own_tokens
        bucket = self._buckets.get(length)
        if bucket is None:
            bucket = self._buckets[length] = OrderedDict()
            insort(self._lengths, length)
        bucket[entry] = None

    def put_back(self, entries: Iterable[Entry]) -> None:
        """They stand where they stood before they were discarded, one after another, by `nearest`."""
        for entry in reversed([*entries]):
            self.add(entry)
            self._buckets[entry.num_own_tokens].move_to_end(entry, last=False)

    def discard(self, entry: Entry) -> None:
        """It is not found any more."""
        length = entry.num_own_tokens
        bucket = self._buckets.get(length)
        if bucket is None or entry not in bucket:
            return
        del bucket[entry]
        if not bucket:
            del self._buckets[length]
            self._lengths.pop(bisect_left(self._lengths, length))

    def nearest(self, length: int, room: int) -> Entry | None:
        """One of at most `room` tokens, as near as can be to `length`."""
        at = bisect_left(self._lengths, length)
        above = self._lengths[at] if at < len(self._lengths) else None
        below = self._lengths[at - 1] if at else None
        if above is not None and above > room:
            above = None
        if below is not None and below > room:
            fitting = bisect_left(self._lengths, room + 1)
            below = self._lengths[fitting - 1] if fitting else None
        if above is None and below is None:
            return None
        nearest = above if below is None or (above is not None and above - length <= length - below) else below
        assert nearest is not None
        return next(iter(self._buckets[nearest]))
