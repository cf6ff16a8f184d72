"""How much work inputs are, before they are tokenised."""

from typing import Any

import pytest

from rtp_llm.engine.estimate import Estimate

LONG = "x" * 40_000


@pytest.mark.parametrize(
    ("inputs", "lead", "expected"),
    [
        (["x" * 400], 0, 102),
        (["x" * 400, ("y" * 200, "z" * 200)], 0, 204),
        ([[7] * 30], 5000, 30),
        (["a"] * 10, 400, 1020),
        ([LONG] * 3, 0, 3 * 512),
        (["a"], 40_000, 512),
        ([[7] * 9999], 0, 512),
    ],
)
def test_no_more_of_an_input_counts_than_is_read(inputs: Any, lead: int, expected: int) -> None:
    assert Estimate(lead, 512).tokens(inputs) == expected


@pytest.mark.parametrize(
    ("value", "lead", "expected"),
    [("a", 0, 2), (LONG, 0, 10_000 + 20 * 2), (LONG, 992, 10_000 + 39 * 250), ([7] * 9999, 400, 9999)],
)
def test_each_chunk_of_a_long_text_counts(value: Any, lead: int, expected: int) -> None:
    assert Estimate(lead, 512, "mean").tokens([value]) == expected


@pytest.mark.parametrize(("stride", "chunks"), [(0, 20), (10, 20), (255, 39), (509, 9491), (900, 9100)])
def test_what_chunks_have_in_common_counts_with_each(stride: int, chunks: int) -> None:
    estimate = Estimate(0, 512, "mean", stride=stride)
    assert estimate.tokens([LONG]) == 10_000 + 2 * chunks + stride * (chunks - 1)
    assert Estimate(0, 512, "mean", stride=stride).tokens(["a"]) == 2


def test_a_prompt_that_fills_each_chunk_is_work_for_each_token() -> None:
    assert Estimate(4000, 512, "mean").tokens([LONG]) > 1_000_000


def test_late_chunks_are_one_sequence() -> None:
    assert Estimate(0, 512, "late").tokens(["x" * 400] * 3) == 306
    assert Estimate(0, 512, "late").tokens(["x" * 400] * 30) == 512


def test_what_cannot_matter_is_not_looked_at() -> None:
    class Endless(list[Any]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            while True:
                yield "text"

    assert Estimate(0, 512).tokens(Endless(), enough=50) == 51
    assert Estimate(0, 512, "late").tokens(Endless()) == 512
    assert Estimate(0, 512).characters(Endless(), enough=50) == 60


def test_a_rerankers_own_words_are_tokenised_with_each_pair_alone() -> None:
    estimate = Estimate(5, 512, around_pair=100)
    assert [estimate.characters([value]) for value in (("a", "b"), "ab", [1, 2])] == [123, 23, 18]
    assert estimate.tokens([("a", "b")]) == Estimate(5, 512).tokens([("a", "b")])


@pytest.mark.parametrize(
    ("inputs", "chunking", "ends"),
    [
        (["a"] * 10, None, [4, 8, 10]),
        ([LONG] * 5, None, [1, 2, 3, 4, 5]),
        (["x" * 1200] * 5, None, [2, 4, 5]),
        (["a", LONG, "b", LONG], None, [3, 4]),
        (["a"] * 10, "late", [10]),
    ],
)
def test_parts(inputs: Any, chunking: Any, ends: list[int]) -> None:
    estimate, stops = Estimate(0, 512, chunking), [0]
    while stops[-1] < len(inputs):
        stops.append(estimate.end_of_part(inputs, stops[-1], 4, max_tokens=700))
    assert stops[1:] == ends


def test_parts_by_what_is_tokenised() -> None:
    """Of long texts more is tokenised than is read."""
    estimate, inputs = Estimate(0, 16), ["x" * 600] * 3 + ["a"] * 9
    assert [estimate.end_of_part(inputs, start, 8, max_characters=1000) for start in (0, 2, 3)] == [1, 10, 11]
