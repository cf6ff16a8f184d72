"""SPLADE against sentence-transformers' SparseEncoder, on random weights of the real architectures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray, SparseVector, TaskType
from rtp_llm.errors import CheckpointError
from tests.backends import BACKENDS
from tests.models.oracle import add_noise
from tests.tasks.checkpoints import LIMIT, SHAPES, TEXTS, VOCAB, loaded, save

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")


def make(folder: Path, head: str = "BertForMaskedLM", activation: str = "relu", **shape: Any) -> Path:
    """A SparseEncoder saved to disk."""
    model = save(folder / "plain", head, **shape)
    with torch.no_grad():
        bias = model.cls.predictions.bias if head.startswith("Bert") else model.lm_head.bias
        bias.copy_(torch.randn(len(VOCAB)))
    model.save_pretrained(folder / "plain")
    theirs = sentence_transformers.SparseEncoder(str(folder / "plain"), device="cpu")
    theirs[1].activation_function = activation
    theirs.save(str(folder / "saved"), create_model_card=False)
    return folder / "saved"


def expected(folder: Path) -> FloatArray:
    theirs = sentence_transformers.SparseEncoder(str(folder), device="cpu")
    rows: FloatArray = theirs.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    return rows


def dense(vectors: list[SparseVector]) -> FloatArray:
    rows = np.zeros((len(vectors), len(VOCAB)), np.float32)
    for row, vector in zip(rows, vectors, strict=True):
        assert (vector.values > 0).all() and (np.diff(vector.indices) > 0).all()
        row[vector.indices] = vector.values
    return rows


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_sparse_encoder(shape: str, backend: str, tmp_path: Path) -> None:
    folder = make(tmp_path, **SHAPES[shape])
    rows = expected(folder)
    assert 0.2 < (rows > 0).mean() < 0.95
    with loaded(folder, backend) as model:
        assert model.info.tasks == (TaskType.SPARSE,) and model.info.dimension == len(VOCAB)
        ours = model.embed_sparse(TEXTS, return_tokens=True)
        assert np.abs(dense(ours) - rows).max() <= 1e-5
        assert ours[0].tokens == tuple(VOCAB[i] for i in ours[0].indices)
        if backend != "torch":
            again = [model.embed_sparse([text])[0] for text in TEXTS]
            assert all(np.array_equal(a.values, b.values) for a, b in zip(ours, again, strict=True))


def test_a_masked_language_model_without_modules(tmp_path: Path) -> None:
    make(tmp_path)
    with loaded(tmp_path / "plain", task_type="SPARSE_EMBEDDING") as model:
        assert np.abs(dense(model.embed_sparse(TEXTS)) - expected(tmp_path / "plain")).max() <= 1e-5


def test_two_logarithms_and_an_untied_head(tmp_path: Path) -> None:
    folder = make(tmp_path, activation="log1p_relu", tie_word_embeddings=False)
    with loaded(folder) as model:
        assert np.abs(dense(model.embed_sparse(TEXTS)) - expected(folder)).max() <= 1e-5


ENDS = {f"{role}_token_id": 0 for role in ("bos", "eos", "cls", "sep", "pad")}
OTHERS: dict[str, dict[str, Any]] = {
    "Roberta": {"type_vocab_size": 1, "pad_token_id": 1},
    # Its norms have an eps of their own, whatever config.json says.
    "DistilBert": {"activation": "relu", "hidden_dim": 50, "layer_norm_eps": 0.1},
    "Ernie": {"hidden_act": "relu"},
    "MPNet": {},
    "ModernBert": {"local_attention": 12, "norm_eps": 1e-3, "classifier_activation": "silu", **ENDS},
    "Gte": {"layer_norm_eps": 1e-3},
    "NomicBert": {"layer_norm_eps": 1e-3, "pad_token_id": 0},
}


def make_other(folder: Path, family: str, **options: Any) -> Any:
    """A SparseEncoder of another family in `folder/saved` -> transformers' model."""
    from transformers import BertTokenizer

    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(VOCAB), max_position_embeddings=LIMIT + 2, hidden_size=36, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=50, **OTHERS[family], **options,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForMaskedLM")(config).eval()
    add_noise(model)
    model.save_pretrained(folder / "plain")
    vocab = {word: i for i, word in enumerate(VOCAB)}
    names = ["input_ids", "attention_mask"]
    BertTokenizer(vocab=vocab, model_max_length=LIMIT, model_input_names=names).save_pretrained(folder / "plain")
    sentence_transformers.SparseEncoder(str(folder / "plain"), device="cpu").save(
        str(folder / "saved"), create_model_card=False
    )
    return model


def check_other(folder: Path, backend: str = "numpy") -> None:
    rows = expected(folder)
    assert 0.1 < (rows > 0).mean() < 0.99
    with loaded(folder, backend) as ours:
        assert np.abs(dense(ours.embed_sparse(TEXTS)) - rows).max() <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", OTHERS)
def test_other_heads(family: str, tied: bool, backend: str, tmp_path: Path) -> None:
    make_other(tmp_path, family, tie_word_embeddings=tied)
    check_other(tmp_path / "saved", backend)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_words_that_a_checkpoint_has_twice(part: str, tmp_path: Path) -> None:
    """transformers 5 ties neither tables nor biases of which there are two, with different numbers."""
    from safetensors.torch import load_file, save_file

    folder = make(tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    shape = {"weight": tensors["bert.embeddings.word_embeddings.weight"].shape, "bias": (len(VOCAB),)}
    torch.manual_seed(2)
    tensors[f"cls.predictions.decoder.{part}"] = torch.randn(shape[part])
    save_file(tensors, path, {"format": "pt"})
    with loaded(folder) as model:
        assert np.abs(dense(model.embed_sparse(TEXTS)) - expected(folder)).max() <= 1e-5


@pytest.mark.parametrize("parts", [(False, False, False), (True, True, True)])
def test_biases_of_modernberts_head(parts: tuple[bool, bool, bool], tmp_path: Path) -> None:
    names = ("classifier_bias", "norm_bias", "decoder_bias")
    make_other(tmp_path, "ModernBert", **dict(zip(names, parts, strict=True)))
    check_other(tmp_path / "saved")


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_nomicberts_head_as_its_authors_name_it(activation: str, tmp_path: Path) -> None:
    make_other(tmp_path, "NomicBert", hidden_act=activation)
    rows, path = expected(tmp_path / "saved"), tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text())
    del config["hidden_act"]
    path.write_text(json.dumps({**config, "activation_function": {"silu": "swiglu", "gelu": "geglu"}[activation]}))
    with loaded(tmp_path / "saved") as ours:
        assert np.abs(dense(ours.embed_sparse(TEXTS)) - rows).max() <= 1e-5


def test_files_of_sentence_transformers_5_0(tmp_path: Path) -> None:
    folder = make(tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "sentence_transformers.sparse_encoder.models.MLMTransformer"
    modules[1]["type"] = "sentence_transformers.sparse_encoder.models.SpladePooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
    pooling = {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": None}
    (folder / "1_SpladePooling" / "config.json").write_text(json.dumps(pooling))
    with loaded(folder) as model:
        assert model.info.max_seq_len == 20
        assert np.abs(dense(model.embed_sparse(TEXTS)) - expected(folder)).max() <= 1e-5


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("1_SpladePooling/config.json", '"max"', '"sum"', "pooling_strategy 'sum' is not served; 'max' is"),
        ("1_SpladePooling/config.json", '"relu"', '"elu"', "activation_function 'elu' is not one of relu, log1p_relu"),
        ("1_SpladePooling/config.json", '"relu"', "5", "activation_function is 5; a string is needed"),
        ("sentence_bert_config.json", "fill-mask", "feature-extraction", "SpladePooling alone goes with fill-mask"),
        ("modules.json", "SpladePooling", "Pooling", "fill-mask is followed by Pooling"),
    ],
)
def test_what_is_not_served(file: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    folder = make(tmp_path)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=message), loaded(folder):
        pass
