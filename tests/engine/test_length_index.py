"""What waits, by its length."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_llm.engine.length_index import LengthIndex


@dataclass(eq=False)
class Entry:
    num_own_tokens: int


def drained(index: LengthIndex[Entry], length: int = 1) -> list[Entry]:
    entries = []
    while (entry := index.nearest(length, 10**6)) is not None:
        index.discard(entry)
        entries.append(entry)
    return entries


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=20),
    wanted=st.integers(1, 50),
    room=st.integers(-5, 50),
    gone=st.sets(st.integers(0, 19)),
)
def test_the_nearest_that_there_is_room_for(lengths: list[int], wanted: int, room: int, gone: set[int]) -> None:
    index, entries = LengthIndex[Entry](), [Entry(length) for length in lengths]
    for entry in entries:
        index.add(entry)
    for entry in [entry for place, entry in enumerate(entries) if place in gone] * 2:
        index.discard(entry)
    left = [entry for place, entry in enumerate(entries) if place not in gone and entry.num_own_tokens <= room]
    found = index.nearest(wanted, room)
    if not left:
        assert found is None
        return
    assert found is not None
    distance = min(abs(entry.num_own_tokens - wanted) for entry in left)
    same = [entry for entry in left if entry.num_own_tokens == found.num_own_tokens]
    assert abs(found.num_own_tokens - wanted) == distance and found is same[0]


def test_what_is_put_back_stands_where_it_stood() -> None:
    index, entries = LengthIndex[Entry](), [Entry(n) for n in (3, 3, 5, 3)]
    for entry in entries:
        index.add(entry)
    passed_over = [entries[0], entries[1], entries[2]]
    for entry in passed_over:
        index.discard(entry)
    index.put_back(passed_over)
    assert drained(index) == [entries[0], entries[1], entries[3], entries[2]]
