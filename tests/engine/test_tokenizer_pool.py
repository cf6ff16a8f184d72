"""The threads that tokenise: they share one tokenizer, and small requests need none of them."""

import threading
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.core import Input, Item, Params
from rtp_llm.engine.estimate import Estimate
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.engine.tokenizer_pool import TokenizerPool
from tests.engine.test_tokenizer import LIMIT, ids


def test_threads_share_one_tokenizer(tiny: Path) -> None:
    tokenizer = Tokenizer(tiny, max_seq_len=LIMIT)
    cases = [
        (["a " * 50], Params(), [[2, *[20] * 30, 3]]),
        (["a b c " * 20], Params(truncation_side="left"), [[2, *[20, 21, 22] * 10, 3]]),
        (["a b"], Params(truncate=False), [[2, 20, 21, 3]]),
        (["b " * 50], Params(add_special_tokens=False), [[21] * 32]),
    ]
    wrong: list[Any] = []

    def work(inputs: list[Input], params: Params, expected: list[list[int]]) -> None:
        for _ in range(200):
            if (got := ids(tokenizer.encode(inputs, params))) != expected:
                wrong.append(got)

    threads = [threading.Thread(target=work, args=case) for case in cases * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pool(tiny: Path) -> None:
    pool = TokenizerPool(Tokenizer(tiny, max_seq_len=LIMIT), 2)
    done: list[tuple[str, list[Item]]] = []

    def work() -> bool:
        done.append((threading.current_thread().name, pool.encode(["a"], Params())))
        return False

    for _ in range(10):
        pool.submit(work, Lane.INTERACTIVE)
    pool.close(5)
    assert [ids(items) for _, items in done] == [[[2, 20, 3]]] * 10
    assert {name.partition("_")[0] for name, _ in done} == {"tokenizer"}


@pytest.mark.parametrize(
    ("inputs", "params", "small"),
    [
        (["a" * 1984], {}, True),
        (["a" * 1985], {}, False),
        (["a"] * 117, {}, True),
        (["a"] * 118, {}, False),
        ([("a" * 1000, "b" * 1000)], {}, False),
        ([[1] * 1000] * 3, {}, False),
        (["a"] * 17, {"prompt": "x" * 100}, True),
        (["a"] * 18, {"prompt": "x" * 100}, False),
        (["a"] * 18, {"prompt_name": "long"}, False),
        ([[1]] * 18, {"prompt_name": "long"}, True),
        ([("q", "d")] * 18, {"instruction": "x" * 100}, False),
        (["a"], {"stride": 1}, False),
    ],
)
def test_small_requests_need_no_thread(inputs: Any, params: Any, small: bool, tiny: Path) -> None:
    """What stands before each input is tokenised with each: it counts as often."""
    pool = TokenizerPool(Tokenizer(tiny, max_seq_len=LIMIT, prompts={"long": "x" * 100}), 1)
    assert pool.is_small(inputs, pool.estimate(Params(**params))) == small


def test_the_measure_of_a_request(tiny: Path) -> None:
    tokenizer = Tokenizer(tiny, max_seq_len=LIMIT, prompts={"own": "abc"}, default_prompt_name="own")
    pool = TokenizerPool(tokenizer, 1)
    assert pool.estimate(Params()) == Estimate(3, LIMIT)
    assert pool.estimate(Params(prompt="a", instruction="bc", max_tokens=9)) == Estimate(3, 9)
    assert pool.estimate(Params(max_tokens=0)) == Estimate(3, 1)
    assert pool.estimate(Params(prompt_name="unknown", chunking="mean")) == Estimate(0, LIMIT, "mean")
