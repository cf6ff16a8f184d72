"""Texts over the limit are cut, as over HTTP; a command says so in one line on standard error, when it is done."""

from pathlib import Path

import pytest

from rtp_llm import Model
from tests.cli.conftest import FAST, Shell

pytest.importorskip("torch")
pytest.importorskip("transformers")

LIMIT = ("--max_seq_len", 6)
TEXTS = b"so sunny\nthe weather is lovely so sunny outside today\nso\n"
TELLS = "were cut at the limit of 6 tokens, and the rest of them was not read: "


@pytest.mark.parametrize("out", ["-", "out.npy", "out.jsonl"])
def test_embed(out: str, shell: Shell, m3: Path, tmp_path: Path) -> None:
    done = shell("embed", m3, "-", out if out == "-" else tmp_path / out, *LIMIT, *FAST, stdin=TEXTS)
    words = "split them, or raise --max_seq_len where the model was made for more"
    assert (done.status, done.err) == (0, f"rtp-llm embed: 1 of 3 texts {TELLS}{words}\n")
    assert done.out.count("\n") == (3 if out == "-" else 0)


def test_several_kinds_count_a_text_once(shell: Shell, m3: Path) -> None:
    done = shell("embed", m3, "-", "-", "--output", "dense,sparse", *LIMIT, *FAST, stdin=TEXTS)
    assert done.err.startswith(f"rtp-llm embed: 1 of 3 texts {TELLS}")


def test_rerank(shell: Shell, reranker: Path, m3: Path) -> None:
    done = shell("rerank", reranker, "so", *LIMIT, *FAST, stdin=TEXTS)
    assert done.err.startswith(f"rtp-llm rerank: 1 of 3 documents {TELLS}split them")
    done = shell("rerank", m3, "the weather is lovely so sunny outside today", *LIMIT, *FAST, stdin=TEXTS)
    assert done.err.startswith(f"rtp-llm rerank: 2 of 4 texts, the query among them, {TELLS}split them")


def test_classify(shell: Shell, classifier: Path, tagger: Path) -> None:
    done = shell("classify", classifier, *LIMIT, *FAST, stdin=TEXTS)
    assert done.err.startswith(f"rtp-llm classify: 1 of 3 texts {TELLS}split them")
    done = shell("classify", tagger, *LIMIT, *FAST, stdin=TEXTS)
    assert done.err.startswith(f"rtp-llm classify: 1 of 3 texts {TELLS}say --stride N")
    done = shell("classify", tagger, "--aggregation_strategy", "none", *LIMIT, *FAST, stdin=TEXTS)
    assert "say --stride" not in done.err and "split them" in done.err
    assert shell("classify", tagger, "--stride", 1, *LIMIT, *FAST, stdin=TEXTS).err == ""


def test_nothing_is_said_where_nothing_was_cut(shell: Shell, m3: Path) -> None:
    assert shell("embed", m3, "-", "-", *FAST, stdin=TEXTS).err == ""


def test_the_library_counts(m3: Path) -> None:
    long = "the weather is lovely so sunny outside today"
    with Model(m3, max_seq_len=6, num_threads=1) as model:
        model.embed([long, "so"])
        model.embed_sparse([long, long])
        assert model.num_truncated == 3
