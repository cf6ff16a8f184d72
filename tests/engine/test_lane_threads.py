"""Turns of work on threads: who goes first, and what becomes of it at the end."""

import threading
from collections.abc import Iterator

import pytest

from rtp_llm.engine.lane import Lane
from rtp_llm.engine.lane_threads import LaneThreads, Work


class Turns:
    """Work that notes its turns; the first waits for `go`, so that the rest is there when it ends."""

    def __init__(self, num_threads: int = 1) -> None:
        self.threads = LaneThreads(num_threads, "turns")
        self.taken: list[str] = []
        self.go, held = threading.Event(), threading.Event()
        self.threads.submit(lambda: self._hold(held), Lane.BULK)
        assert held.wait(60)

    def _hold(self, held: threading.Event) -> bool:
        held.set()
        self.go.wait(60)
        return False

    def work(self, name: str, count: int = 1) -> Work:
        left = iter(range(count - 1, -1, -1))

        def turn() -> bool:
            self.taken.append(name)
            return next(left) > 0

        return turn

    def all_taken(self) -> str:
        self.go.set()
        self.threads.close(60)
        return "".join(self.taken)


@pytest.fixture
def turns() -> Iterator[Turns]:
    turns = Turns()
    yield turns
    turns.all_taken()


def test_interactive_work_goes_first(turns: Turns) -> None:
    for name, lane in (("a", Lane.BULK), ("b", Lane.BULK), ("x", Lane.INTERACTIVE), ("y", Lane.INTERACTIVE)):
        turns.threads.submit(turns.work(name), lane)
    assert turns.all_taken() == "xyab"


def test_what_is_left_waits_behind_the_others(turns: Turns) -> None:
    for name in "ab":
        turns.threads.submit(turns.work(name, 3), Lane.BULK)
    turns.threads.submit(turns.work("c"), Lane.BULK)
    assert turns.all_taken() == "abcabab"


def test_a_flood_of_interactive_work_leaves_bulk_work_its_turns(turns: Turns) -> None:
    turns.threads.submit(turns.work("x", 20), Lane.INTERACTIVE)
    turns.threads.submit(turns.work("a", 3), Lane.BULK)
    assert turns.all_taken() == "xxxxaxxxxaxxxxa" + "x" * 8


def test_work_that_raises_ends_no_thread(turns: Turns) -> None:
    def raises() -> bool:
        raise SystemExit

    for _ in range(3):
        turns.threads.submit(raises, Lane.INTERACTIVE)
    turns.threads.submit(turns.work("a"), Lane.BULK)
    assert turns.all_taken() == "a"


def test_close_waits_for_what_is_left_and_takes_no_more() -> None:
    turns = Turns(2)
    turns.threads.submit(turns.work("a", 100), Lane.BULK)
    assert turns.all_taken() == "a" * 100
    with pytest.raises(RuntimeError):
        turns.threads.submit(turns.work("b"), Lane.INTERACTIVE)


def test_close_gives_up_after_its_time(turns: Turns) -> None:
    turns.threads.submit(turns.work("a"), Lane.INTERACTIVE)
    turns.threads.close(0.05)
    assert not turns.go.is_set()
    assert turns.all_taken() == ""


def test_what_is_left_when_the_threads_are_closed_is_given_up() -> None:
    threads, turn, done = LaneThreads(1, "turns"), threading.Event(), threading.Event()

    def endless() -> bool:
        turn.set()
        done.wait(60)
        return True

    threads.submit(endless, Lane.BULK)
    assert turn.wait(60)
    threads.close(0)
    done.set()
    threads.close(60)
    assert not threads._num_running and not any(threads._waiting.values())
