"""Static embeddings against sentence-transformers' StaticEmbedding, on random tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray, TaskType
from rtp_llm.errors import CheckpointError
from tests.backends import BACKENDS
from tests.tasks.checkpoints import TEXTS, VOCAB, loaded

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
tokenizers = pytest.importorskip("tokenizers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

SIZE = 48


def tokenizer(folder: Path, limit: int | None = None, side: str = "right") -> Any:
    """BERT's, with a template of special tokens, padding and, where `limit` says so, a truncation."""
    from transformers import BertTokenizer

    folder.mkdir(exist_ok=True)
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCAB)}).save_pretrained(folder)
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.enable_padding(length=32)
    if limit:
        made.enable_truncation(limit, direction=side)
    return made


def save(folder: Path, *rest: Any, limit: int | None = None, side: str = "right", **options: Any) -> Path:
    torch.manual_seed(0)
    read = tokenizer(folder / "tokenizer", limit, side)
    static = modules.StaticEmbedding(read, torch.randn(len(VOCAB), SIZE).numpy())
    sentence_transformers.SentenceTransformer(modules=[static, *rest], device="cpu", **options).save(
        str(folder / "saved"), create_model_card=False
    )
    return folder / "saved"


def expected(folder: Path, texts: list[str] = TEXTS, **options: Any) -> FloatArray:
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    rows: FloatArray = theirs.encode(texts, **options)
    return rows


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalizes", [False, True])
def test_equals_static_embedding(normalizes: bool, backend: str, tmp_path: Path) -> None:
    folder = save(tmp_path, *([modules.Normalize()] if normalizes else []))
    rows = expected(folder)
    with loaded(folder, backend) as model:
        assert model.info.tasks == (TaskType.DENSE, TaskType.TOKENS) and model.info.dimension == SIZE
        assert model.info.vocab_size == len(VOCAB) and model.info.model_type == "static_embedding"
        ours = model.embed(TEXTS)
        assert np.abs(ours - rows).max() <= 1e-5
        assert not ours[TEXTS.index("")].any()
        if backend != "torch":
            assert all(np.array_equal(model.embed(text), row) for text, row in zip(TEXTS, ours, strict=True))


def test_matryoshka_and_prompts(tmp_path: Path) -> None:
    folder = save(tmp_path, modules.Normalize(), prompts={"query": "he drove ", "document": ""})
    shorter = expected(folder, truncate_dim=16, normalize_embeddings=True)
    with loaded(folder) as model:
        assert np.abs(model.embed(TEXTS, dimensions=16) - shorter).max() <= 1e-5
        assert np.abs(model.embed(TEXTS, prompt_name="query") - expected(folder, prompt_name="query")).max() <= 1e-5


def test_a_dense_layer_behind_it(tmp_path: Path) -> None:
    folder = save(tmp_path, modules.Dense(SIZE, 20), modules.Normalize())
    with loaded(folder) as model:
        assert np.abs(model.embed(TEXTS) - expected(folder)).max() <= 1e-5


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_tokenizers_own_limit(side: str, tmp_path: Path) -> None:
    folder = save(tmp_path, limit=7, side=side)
    with loaded(folder) as model:
        assert model.info.max_seq_len == 7
        texts = [*TEXTS, "he drove to stadium so sunny outside today"]
        assert np.abs(model.embed(texts) - expected(folder, texts)).max() <= 1e-5


def test_long_texts(tmp_path: Path) -> None:
    """torch's own sum of 36000 rows in fp32 is 2e-4 off."""
    from safetensors.numpy import load_file

    folder, words = save(tmp_path), "the weather is lovely".split()
    rows = load_file(folder / "model.safetensors")["embedding.weight"].astype(np.float64)
    with loaded(folder) as model:
        exact = rows[[VOCAB.index(word) for word in words]].mean(axis=0)
        assert np.abs(model.embed(" ".join(words * 9000)) - exact).max() <= 1e-6
        # Cut at 65536 tokens, of which the mean is the same.
        assert np.abs(model.embed("b " * 100_000) - model.embed("b")).max() <= 1e-6


def save_model2vec(folder: Path, tensors: dict[str, Any]) -> Path:
    """As its authors publish a model: at the root, with their config.json and a tokenizer_config.json beside."""
    from safetensors.numpy import save_file

    tokenizer(folder).save(str(folder / "tokenizer.json"))
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    # Which sentence-transformers does not read: the whole of a text is.
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 3}))
    kinds = {"StaticEmbedding": ".", "Normalize": "1_Normalize"}
    (folder / "1_Normalize").mkdir()
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for i, (kind, path) in enumerate(kinds.items())
            ]
        )
    )
    return folder


RANDOM = np.random.default_rng(0)
TABLE = RANDOM.standard_normal((len(VOCAB), SIZE)).astype(np.float32)
MAPPING = RANDOM.integers(0, 20, len(VOCAB))
SCALES = RANDOM.random(len(VOCAB)).astype(np.float32)
MODEL2VEC: dict[str, dict[str, Any]] = {
    "whole": {"embeddings": TABLE},
    "shared": {"embeddings": TABLE[:20], "mapping": MAPPING, "weights": SCALES},
    "scaled": {"embeddings": TABLE, "weights": SCALES.astype(np.float64)},
}


@pytest.mark.parametrize("kind", MODEL2VEC)
def test_model2vec(kind: str, tmp_path: Path) -> None:
    folder = save_model2vec(tmp_path, MODEL2VEC[kind])
    with loaded(folder) as model:
        assert np.abs(model.embed(TEXTS) - expected(folder)).max() <= 1e-5


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"table": TABLE}, "neither of embedding.weight, embeddings is there; unexpected: table"),
        ({"embeddings": TABLE, "bias": SCALES}, "unexpected: bias"),
        ({"embedding.weight": TABLE, "weights": SCALES}, "unexpected: weights"),
        ({"embeddings": TABLE[:, 0]}, "2 axes are needed"),
        ({"embeddings": TABLE.astype(np.int8)}, "is of type int8"),
        ({"embeddings": TABLE[:10], "mapping": MAPPING}, "names rows that are not among the 10"),
        ({"embeddings": TABLE, "mapping": SCALES}, "a list of rows is needed"),
        ({"embeddings": TABLE, "weights": SCALES[:5]}, "weights has 5 numbers"),
        ({"embeddings": TABLE * np.inf}, "NaN or infinite"),
    ],
)
def test_what_is_refused(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_model2vec(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=message), loaded(tmp_path):
        pass
