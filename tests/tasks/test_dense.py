"""The dense task against sentence-transformers on random checkpoints: every module, prompts, Matryoshka."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.errors import CheckpointError, InvalidRequest
from tests.models.test_bert import save_bert

st = pytest.importorskip("sentence_transformers")
torch = pytest.importorskip("torch")
modules = pytest.importorskip("sentence_transformers.models")

WORDS = "the weather is lovely today so sunny outside he drove to stadium query passage : a b c ##s ##ing ! ? .".split()
TEXTS = ["the weather is lovely today .", "", "he drove to stadium", "a " * 80, "Query: UNKNOWN words outside!"]
HIDDEN = 32
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def save_transformer(folder: Path) -> Any:
    """A tiny BERT with its tokeniser, as a sentence-transformers Transformer module."""
    from transformers import BertTokenizer

    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    save_bert(folder, hidden_size=HIDDEN, num_attention_heads=4, intermediate_size=64, vocab_size=len(vocab))
    BertTokenizer(vocab={word: i for i, word in enumerate(vocab)}).save_pretrained(folder)
    return modules.Transformer(str(folder), max_seq_length=48)


def save(folder: Path, *chain: Any, prompts: dict[str, str] | None = None, default: str | None = None) -> Any:
    """A sentence-transformers checkpoint of transformer + chain -> its SentenceTransformer."""
    transformer = save_transformer(folder / "plain")
    model = st.SentenceTransformer(
        modules=[transformer, *chain], device="cpu", prompts=prompts or {}, default_prompt_name=default
    )
    model.eval().save(str(folder / "saved"), create_model_card=False)
    return model


def pooling(*modes: str, include_prompt: bool = True) -> Any:
    return modules.Pooling(HIDDEN, pooling_mode=modes, include_prompt=include_prompt)


def dense(width: int, out: int, activation: Any, **options: Any) -> Any:
    torch.manual_seed(2)
    return modules.Dense(width, out, activation_function=activation, **options)


def check(folder: Path, theirs: Any, ours: dict[str, Any] | None = None, **options: Any) -> None:
    """Ours equals theirs on TEXTS; `ours` are our arguments where they differ from theirs."""
    with Model(str(folder / "saved"), backend="numpy") as model:
        actual = model.embed(TEXTS, **(options if ours is None else ours))
    expected = theirs.encode(TEXTS, convert_to_numpy=True, show_progress_bar=False, **options)
    assert actual.shape == expected.shape and actual.dtype == np.float32
    assert np.abs(actual - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_modes(mode: str, normalize: bool, tmp_path: Path) -> None:
    check(tmp_path, save(tmp_path, pooling(mode), *([modules.Normalize()] if normalize else [])))


@pytest.mark.parametrize("modes", [("cls", "mean"), POOLINGS])
def test_several_modes_are_concatenated(modes: tuple[str, ...], tmp_path: Path) -> None:
    check(tmp_path, save(tmp_path, pooling(*modes)))


@pytest.mark.parametrize("mode", POOLINGS)
def test_prompt_left_out_of_the_pooling(mode: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, pooling(mode, include_prompt=False), prompts={"query": "query : the weather "})
    check(tmp_path, theirs, prompt_name="query")
    if mode == "mean":
        set_keys(tmp_path / "saved" / "1_Pooling" / "config.json", include_prompt=None)
        check(tmp_path, theirs, prompt_name="query")


def test_default_prompt_applies_and_a_named_one_replaces_it(tmp_path: Path) -> None:
    prompts = {"query": "query : ", "passage": "passage : "}
    theirs = save(tmp_path, pooling("mean"), prompts=prompts, default="query")
    check(tmp_path, theirs)
    check(tmp_path, theirs, prompt_name="passage")
    check(tmp_path, theirs, prompt="so sunny ")


ACTIVATIONS = [
    "Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "SELU", "CELU", "Softplus", "Softsign",
    "Mish", "ReLU6", "Hardtanh", "Hardsigmoid", "Hardswish", "LogSigmoid", "Tanhshrink",
]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense_with_any_activation(name: str, tmp_path: Path) -> None:
    check(tmp_path, save(tmp_path, pooling("mean"), dense(HIDDEN, 20, getattr(torch.nn, name)())))


@pytest.mark.parametrize(
    "chain",
    [
        lambda: [dense(HIDDEN, HIDDEN, torch.nn.Tanh(), bias=False), modules.LayerNorm(HIDDEN), modules.Normalize()],
        lambda: [modules.Normalize(), dense(HIDDEN, 48, torch.nn.Identity()), dense(48, 8, torch.nn.GELU())],
        lambda: [dense(HIDDEN, HIDDEN, torch.nn.Tanh(), use_residual=True)],
        lambda: [dense(HIDDEN, 24, torch.nn.Tanh(), use_residual=True), modules.Normalize()],
        lambda: [modules.Dropout(0.5), modules.Normalize()],
    ],
)
def test_chains(chain: Any, tmp_path: Path) -> None:
    check(tmp_path, save(tmp_path, pooling("cls"), *chain()))


@pytest.mark.parametrize("size", [1, 8, HIDDEN])
def test_matryoshka_slices_then_normalises(size: int, tmp_path: Path) -> None:
    theirs = save(tmp_path, pooling("mean"), modules.Normalize())
    check(tmp_path, theirs, {"dimensions": size}, truncate_dim=size, normalize_embeddings=True)


@pytest.mark.parametrize("size", [0, -1, HIDDEN + 1])
def test_dimensions_out_of_range(size: int, tmp_path: Path) -> None:
    save(tmp_path, pooling("mean"))
    with Model(str(tmp_path / "saved"), backend="numpy") as model:
        with pytest.raises(InvalidRequest, match=f"{size} is not between 1 and {HIDDEN}"):
            model.embed(["a"], dimensions=size)


@pytest.mark.parametrize("chain", [(), ("Normalize",)])
def test_truncate_dim_is_what_a_request_gets_that_names_no_dimensions(chain: tuple[str, ...], tmp_path: Path) -> None:
    save(tmp_path, pooling("mean"), *(getattr(modules, name)() for name in chain))
    theirs = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu", truncate_dim=8)
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    check(tmp_path, theirs)
    check(tmp_path, theirs, {"normalize": True}, normalize_embeddings=True)
    for size in (4, 8, 20, HIDDEN):
        asked = {"truncate_dim": size, "normalize_embeddings": True}
        check(tmp_path, theirs, {"dimensions": size, "normalize": True}, **asked)
    with Model(str(tmp_path / "saved"), backend="numpy") as model:
        assert (model.info.dimension, model.info.full_dimension) == (8, HIDDEN)


@pytest.mark.parametrize("normalize", [True, False])
def test_normalize_of_the_request_wins(normalize: bool, tmp_path: Path) -> None:
    chain = [] if normalize else [modules.Normalize()]
    save(tmp_path, pooling("mean"), *chain)
    with Model(str(tmp_path / "saved"), backend="numpy") as model:
        lengths = np.linalg.norm(model.embed(TEXTS, normalize=normalize), axis=1)
    assert np.allclose(lengths, 1, atol=1e-6) == normalize


@pytest.mark.parametrize("mode", ["auto", "mean", "cls"])
def test_without_modules_json_mean_or_the_flag(mode: str, tmp_path: Path) -> None:
    transformer = save_transformer(tmp_path / "plain")
    theirs = st.SentenceTransformer(
        modules=[transformer, pooling("mean" if mode == "auto" else mode)], device="cpu"
    ).eval()
    with Model(str(tmp_path / "plain"), backend="numpy", pooling=mode, max_seq_len=48) as model:
        actual = model.embed(TEXTS)
    assert np.abs(actual - theirs.encode(TEXTS)).max() <= 1e-5


def set_keys(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_without_modules_json_no_other_file_is_heeded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, pooling("mean"), prompts={"query": "query : "}, default="query")
    folder = tmp_path / "saved"
    (folder / "modules.json").unlink()
    set_keys(folder / "sentence_bert_config.json", max_seq_length=9)
    set_keys(folder / "config_sentence_transformers.json", truncate_dim=8)
    check(tmp_path, st.SentenceTransformer(str(folder), device="cpu"))
    assert "default_prompt_name, truncate_dim not heeded: without modules.json" in caplog.text
    assert "max_seq_length, " in caplog.text and "chat template" not in caplog.text
    set_keys(folder / "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    Model(str(folder), backend="numpy").close()
    assert "would put each through the tokenizer's chat template" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_args": {"model_max_length": 9}, "processor_kwargs": {"model_max_length": 20}},
        {"config_args": {"hidden_act": "relu"}, "config_kwargs": {"hidden_act": "tanh", "layer_norm_eps": 0.1}},
        {},
    ],
)
def test_which_of_two_settings_is_heeded(settings: dict[str, Any], tmp_path: Path) -> None:
    """Of two names the older, of two files the first that says anything."""
    save(tmp_path, pooling("mean"))
    (tmp_path / "saved" / "sentence_bert_config.json").write_text(json.dumps(settings))
    (tmp_path / "saved" / "sentence_roberta_config.json").write_text(json.dumps({"max_seq_length": 8}))
    check(tmp_path, st.SentenceTransformer(str(tmp_path / "saved"), device="cpu"))


def test_modules_run_in_the_order_of_the_file(tmp_path: Path) -> None:
    save(tmp_path, pooling("mean"), dense(HIDDEN, HIDDEN, torch.nn.Tanh()), modules.Normalize())
    path = tmp_path / "saved" / "modules.json"
    chain = json.loads(path.read_text())
    path.write_text(json.dumps([{**entry, "idx": len(chain) - place} for place, entry in enumerate(chain)]))
    check(tmp_path, st.SentenceTransformer(str(tmp_path / "saved"), device="cpu"))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("modules.json", '"1_Pooling"', '"../1_Pooling"', "1_Pooling"),
        ("modules.json", "Normalize", "Quantize", "Quantize is not served; Pooling, Dense"),
        ("1_Pooling/config.json", '"mean"', '"median"', "'median' is not one of cls"),
        ("2_Dense/config.json", "torch.nn.modules.activation.Tanh", "os.system", "'os.system' is not a torch.nn class"),
        ("2_Dense/config.json", '"in_features": 32', '"in_features": 31', "in_features 31, but 32 columns come in"),
    ],
)
def test_bad_modules_are_refused(file: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    save(tmp_path, pooling("mean"), dense(HIDDEN, HIDDEN, torch.nn.Tanh()), modules.Normalize())
    path = tmp_path / "saved" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=message):
        Model(str(tmp_path / "saved"), backend="numpy")
