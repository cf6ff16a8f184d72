"""The real all-MiniLM-L6-v2 in 8 bits: how near to fp32, and bits that depend on nothing."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.core import FloatArray
from rtp_llm.errors import ConfigError
from tests.ops.data import BUILT, usable_or_skip

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.fixture(scope="module")
def fp32(minilm: Path) -> Iterator[Model]:
    with Model(str(minilm)) as model:
        yield model


@pytest.fixture(scope="module")
def int8(minilm: Path) -> Iterator[Model]:
    with Model(str(minilm), quantization="int8") as model:
        yield model


@pytest.fixture(scope="module")
def passages(assets: Path) -> list[str]:
    articles = json.loads((assets / "data" / "xquad" / "xquad.en.json").read_text())["data"]
    return [paragraph["context"] for article in articles for paragraph in article["paragraphs"]][::4]


def cosines(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.asarray((x * y).sum(axis=1))


def test_passages(fp32: Model, int8: Model, passages: list[str]) -> None:
    alike = cosines(int8.embed(passages), fp32.embed(passages))
    assert alike.min() >= 0.995 and alike.mean() >= 0.998


def test_sts_benchmark(fp32: Model, int8: Model, assets: Path) -> None:
    with gzip.open(assets / "data" / "stsbenchmark.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    rows = [row for row in rows if row[0] == "test"]
    left, right, scores = [row[-2] for row in rows], [row[-1] for row in rows], [float(row[-3]) for row in rows]
    spearman = [
        scipy_stats.spearmanr(cosines(model.embed(left), model.embed(right)), scores).statistic
        for model in (fp32, int8)
    ]
    assert spearman[0] - spearman[1] <= 0.001


def test_alone_in_any_batch_in_any_order_on_any_cores(int8: Model, minilm: Path, passages: list[str]) -> None:
    texts = [*passages[:12], "one", "two words", ""]
    together = int8.embed(texts)
    assert np.array_equal(int8.embed(texts[::-1])[::-1], together)
    assert np.array_equal(np.stack([int8.embed(text) for text in texts]), together)
    with Model(str(minilm), quantization="int8", num_threads=1, max_context_batch_size=20) as other:
        assert np.array_equal(other.embed(texts), together)


@pytest.mark.parametrize("backend", [*BUILT, "numpy"])
def test_backends_agree(int8: Model, minilm: Path, passages: list[str], backend: str) -> None:
    options: dict[str, Any] = {"backend": "numpy"}
    if backend != "numpy":
        options = {"instruction_set": usable_or_skip(backend)}
    texts = ["one", "two words", passages[0]]
    with Model(str(minilm), quantization="int8", **options) as other:
        # NOTE: a number between two steps falls to either where fp32 differs in its last place; layers multiply that.
        assert cosines(other.embed(texts), int8.embed(texts)).min() >= 0.997


def test_linear_layers_take_a_quarter_of_the_memory(fp32: Model, int8: Model) -> None:
    exact, quantized = (
        sum(weight.memory.nbytes for layer in model._engine.runtime.model.layers for weight in _weights(layer))
        for model in (fp32, int8)
    )
    assert 0.25 <= quantized / exact <= 0.27


def _weights(layer: Any) -> list[Any]:
    return [layer.qkv, layer.out, layer.up, layer.down]


def test_the_model_says_so(int8: Model, fp32: Model) -> None:
    assert (int8.info.dtype, fp32.info.dtype) == ("int8", "fp32")


def test_torch_does_not_quantise(minilm: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="leave out --backend torch"):
        Model(str(minilm), quantization="int8", backend="torch")


def test_the_order_of_documents(fp32: Model, int8: Model, passages: list[str]) -> None:
    queries = [" ".join(passage.split()[4:14]) for passage in passages[:40]]
    exact, ours = (model.similarity(queries, passages) for model in (fp32, int8))
    assert (exact.argmax(axis=1) == ours.argmax(axis=1)).all()
    taus = [
        scipy_stats.kendalltau(left[place], right[place]).statistic
        for left, right in zip(exact, ours, strict=True)
        for place in [np.argsort(-left)[:50]]
    ]
    assert np.mean(taus) >= 0.95


def test_the_class_of_a_passage(fp32: Model, int8: Model, passages: list[str]) -> None:
    """The nearest of some centres stays the nearest, unless fp32 itself is all but undecided between two."""
    exact, ours = fp32.embed(passages), int8.embed(passages)
    scores, centres = np.sort(exact @ exact[::6].T, axis=1), exact[::6]
    is_clear = scores[:, -1] - scores[:, -2] >= 0.01
    same = (exact @ centres.T).argmax(axis=1) == (ours @ centres.T).argmax(axis=1)
    assert same[is_clear].all() and is_clear.mean() >= 0.8
