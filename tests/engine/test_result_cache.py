"""The cache of results: bounded, of copies, and with the bits that computing gives."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Params, Request, TaskType
from rtp_llm.engine.lane_queue import Key
from rtp_llm.engine.result_cache import ResultCache
from tests.engine.fakes import FakeRuntime, make_engine


def key(number: int) -> Key:
    return (number.to_bytes(8, "little"), None, 0, b"", (), 0, -1, (TaskType.DENSE,))


def rows(value: float, size: int = 100) -> dict[TaskType, Any]:
    return {TaskType.DENSE: np.full(size, value, np.float32)}


def test_the_least_recently_used_goes_first() -> None:
    cache = ResultCache(3100)  # three entries of 400 bytes and their overhead
    for number in range(3):
        cache.put(key(number), rows(number))
    assert cache.get(key(0)) is not None
    cache.put(key(3), rows(3))
    assert [cache.get(key(number)) is not None for number in range(4)] == [True, False, True, True]
    assert len(cache) == 3 and cache.num_bytes <= cache.capacity


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = ResultCache(3000)
    cache.put(key(0), rows(0))
    cache.put(key(1), rows(1, size=1000))
    assert cache.get(key(0)) is not None and cache.get(key(1)) is None


def test_nobody_can_write_into_it() -> None:
    cache, given = ResultCache(3000), rows(1)
    cache.put(key(0), given)
    given[TaskType.DENSE][:] = 2
    kept = cache.get(key(0))
    assert kept is not None and (kept[TaskType.DENSE] == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        kept[TaskType.DENSE][0] = 3


def test_an_engine_with_a_cache_computes_once() -> None:
    runtime = FakeRuntime()
    engine = make_engine(runtime, result_cache_mb=1)
    first = engine.run_sync(Request(inputs=["abc", "d"])).outputs[TaskType.DENSE]
    again = engine.run_sync(Request(inputs=["d", "abc"]))
    assert sum(runtime.batches) == 2 and again.num_tokens == [1, 3] and again.timings.compute >= 0
    assert np.array_equal(again.outputs[TaskType.DENSE][::-1], first)
    again.outputs[TaskType.DENSE][:] = 0
    mixed = engine.run_sync(Request(inputs=["abc", "e" * 30], params=Params(dimensions=2)))
    assert np.array_equal(mixed.outputs[TaskType.DENSE][0], first[0, :2]) and sum(runtime.batches) == 3
    text = engine.metrics.render().decode()
    assert 'cache_lookups_total{result="hit"} 3.0' in text and "rtp_llm_cache_entries 3.0" in text
    engine.close()


def test_without_the_flag_nothing_is_kept() -> None:
    runtime = FakeRuntime()
    engine = make_engine(runtime)
    for _ in range(2):
        engine.run_sync(Request(inputs=["abc"]))
    engine.close()
    assert runtime.batches == [1, 1]
