"""The real all-MiniLM-L6-v2: published numbers, sentence-transformers, and bits that depend on nothing."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.core import FloatArray
from rtp_llm.ops.native_library import FEWER_PARTS, best

PANGRAM = "The quick brown fox jumps over the lazy dog. "


@pytest.fixture(scope="module")
def model(minilm: Path) -> Iterator[Model]:
    with Model(str(minilm)) as model:
        yield model


@pytest.fixture(scope="module")
def mixed_texts(assets: Path) -> list[str]:
    """2,000 texts: STS-B sentences, XQuAD paragraphs in four languages, and odd ones."""
    texts = ["", " ", "a", "\n\t", PANGRAM * 40, "日本語のテキスト", "naïve café — “quotes”", "🙂" * 30, "x" * 5000]
    with gzip.open(assets / "data" / "stsbenchmark.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    texts += [row[-2] for row in rows[1:1300]] + [row[-1] for row in rows[1:493]]
    for language in ("en", "zh", "de", "es"):
        articles = json.loads((assets / "data" / "xquad" / f"xquad.{language}.json").read_text())["data"]
        texts += [paragraph["context"] for article in articles for paragraph in article["paragraphs"]][:50]
    return texts[:2000]


def test_published_values(model: Model) -> None:
    first = model.embed("hello world")[:5]
    assert np.allclose(first, [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362], atol=1e-4)  # fastembed's tests
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = model.embed(texts)
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]  # sbert.net quickstart
    assert np.allclose(vectors @ vectors.T, published, atol=1e-4)


@pytest.fixture(scope="module")
def theirs(minilm: Path) -> Any:
    return pytest.importorskip("sentence_transformers").SentenceTransformer(str(minilm), device="cpu")


@pytest.mark.parametrize("part", range(4))  # of 20 s in all, which may end on both of two test processes
def test_equals_sentence_transformers_on_2000_texts(
    part: int, model: Model, theirs: Any, mixed_texts: list[str]
) -> None:
    assert len(mixed_texts) >= 1900
    texts = mixed_texts[part::4]
    expected = theirs.encode(texts, batch_size=16, show_progress_bar=False)
    assert np.abs(model.embed(texts) - expected).max() <= 1e-5


def test_alone_in_any_batch_in_any_order_on_any_cores(model: Model, minilm: Path, mixed_texts: list[str]) -> None:
    texts = mixed_texts[:150]
    together = model.embed(texts)
    order = random.Random(3).sample(range(len(texts)), len(texts))
    shuffled = model.embed([texts[i] for i in order])
    assert np.array_equal(shuffled, together[order])
    assert np.array_equal(np.stack([model.embed(text) for text in texts]), together)
    with Model(str(minilm), num_threads=1, max_context_batch_size=20) as other:
        assert np.array_equal(other.embed(texts), together)


def test_the_limit_is_256_tokens(model: Model) -> None:
    assert model.info.max_seq_len == 256
    long = PANGRAM * 100
    assert np.array_equal(model.embed(long), model.embed(long + "more"))
    assert not np.array_equal(model.embed(PANGRAM * 15), model.embed(PANGRAM * 16))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_backends_agree(model: Model, minilm: Path, backend: str) -> None:
    texts = ["one", "two words", PANGRAM * 9]
    with Model(str(minilm), backend=backend) as other:
        difference: FloatArray = np.abs(other.embed(texts) - model.embed(texts))
    assert difference.max() <= 1e-6


@pytest.mark.parametrize(("act_type", "distance", "cosine"), [("fp16", 2e-5, 0.9999995), ("bf16", 4e-3, 0.9999)])
def test_act_types(
    model: Model, minilm: Path, mixed_texts: list[str], act_type: str, distance: float, cosine: float
) -> None:
    if f"{act_type}_products" not in FEWER_PARTS.get(best(), ()):
        pytest.skip(f"{best()} kernels compute in fp32")
    texts = mixed_texts[::20]
    exact = model.embed(texts)
    with Model(str(minilm), act_type=act_type) as other:
        vectors = other.embed(texts)
        alone = np.stack([other.embed(text) for text in texts])
    assert np.array_equal(alone, vectors)
    assert 0 < np.abs(vectors - exact).max() <= distance
    assert (vectors.astype(np.float64) * exact).sum(axis=1).min() >= cosine
