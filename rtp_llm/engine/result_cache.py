"""Rows that were computed before, by all that they depend on: a hit has the bits that computing would give."""

from collections import OrderedDict
from typing import NamedTuple

from rtp_llm.core import FloatArray, TaskType
from rtp_llm.engine.lane_queue import Key
from rtp_llm.engine.outcome import ItemRows

# What an entry takes beside its arrays: key, dictionary, array objects.
_ENTRY_BYTES = 600


class _Entry(NamedTuple):
    rows: dict[TaskType, FloatArray]
    num_bytes: int


class ResultCache:
    """The rows used last, up to `capacity` bytes. Not thread-safe: its owner holds a lock around each call.

    Rows are kept as they are before a request's own parameters apply, so these need no place in the key. They are
    copies that cannot be written to; whoever takes them copies them again.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_bytes = 0
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> ItemRows | None:
        """The rows of an item with this key; None where they are not known."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.rows

    def put(self, key: Key, rows: ItemRows) -> None:
        """Keep the rows, and forget those that have not been used for longest."""
        num_bytes = _ENTRY_BYTES + len(key[0]) + len(key[1] or b"") + sum(row.nbytes for row in rows.values())
        if num_bytes > self.capacity or key in self._entries:
            return
        while self.num_bytes + num_bytes > self.capacity:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
        self._entries[key] = _Entry({task: _frozen(row) for task, row in rows.items()}, num_bytes)
        self.num_bytes += num_bytes


def _frozen(row: FloatArray) -> FloatArray:
    copy: FloatArray = row.copy()
    copy.flags.writeable = False
    return copy
