"""BART against transformers' BartModel, and its classifier with texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from rtp_llm import Model
from rtp_llm.checkpoint import read_json
from rtp_llm.errors import CheckpointError, InvalidRequest
from rtp_llm.models import find_model_type
from rtp_llm.models.bart import BartConfig
from tests.backends import BACKENDS
from tests.conftest import WORDS
from tests.models.oracle import (
    assert_alone_and_in_any_order,
    assert_as_exact,
    hidden_states,
    load,
    make_items,
    reference,
    saved,
    untyped,
    worst,
)
from tests.models.test_layers import layers
from tests.models.test_wanted import assert_same, last_states

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = {"vocab_size": 101, "max_position_embeddings": 96, "init_std": 0.1, "attn_implementation": "eager"}
SHAPES: dict[str, dict[str, Any]] = {
    "even": {
        "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128,
        "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 128,
    },
    # As of distilled ones, the decoder has fewer layers.
    "odd": {
        "d_model": 60, "encoder_layers": 3, "encoder_attention_heads": 5, "encoder_ffn_dim": 77,
        "decoder_layers": 1, "decoder_attention_heads": 3, "decoder_ffn_dim": 50, "activation_function": "relu",
        "scale_embedding": True, "decoder_start_token_id": 7,
    },
}  # fmt: skip
LENGTHS = (1, 2, 17, 64, 7, 96)


def save(folder: Path, shape: str, head: str = "Model", **changes: Any) -> Any:
    """A random checkpoint whose norms and biases are not trivial."""
    config = transformers.BartConfig(**{**COMMON, **SHAPES[shape], **changes})
    return saved(folder, getattr(transformers, f"Bart{head}"), config)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, shape), untyped(make_items(LENGTHS)), BACKENDS[backend]()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert_as_exact(theirs, ours, items)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_equals_alone_in_any_order_bit_for_bit(shape: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, shape)
    ops, items = BACKENDS[backend](), untyped(make_items(LENGTHS))
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, items)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_wanted_rows_and_every_layer(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, shape), untyped(make_items((5, 1, 33, 17, 2))), BACKENDS[backend]()
    model = load(tmp_path, ops)
    every = last_states(model, ops, items, "all")
    assert_same(backend, last_states(model, ops, items, "first"), np.stack([rows[0] for rows in every]))
    assert_same(backend, last_states(model, ops, items, "last"), np.stack([rows[-1] for rows in every]))
    expected = []
    with torch.no_grad():
        for item in items:
            out = theirs(input_ids=torch.from_numpy(item.input_ids).long()[None], output_hidden_states=True)
            states = (*out.encoder_hidden_states[:-1], *out.decoder_hidden_states)
            expected.append([rows[0].numpy() for rows in states])
    ours = layers(model, ops, items)
    assert len(ours) == len(model.layers) + 1
    assert max(map(worst, ours, map(list, zip(*expected, strict=True)))) <= 1e-5


@pytest.mark.parametrize("head", ["ForConditionalGeneration", "ForSequenceClassification", "ForQuestionAnswering"])
def test_prefixed_checkpoints_load_and_heads_are_ignored(head: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, "odd", head), untyped(make_items(LENGTHS)), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.model, items)) <= 1e-5
    architecture = {"architectures": read_json(tmp_path, "config.json")["architectures"]}
    assert find_model_type("auto", architecture) == "bart"


@pytest.mark.parametrize("names", ["encoder", "decoder", "both", "both and the same"])
def test_the_table_of_words_by_its_other_names(names: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save(tmp_path, "odd")
    items, ops = untyped(make_items(LENGTHS)), BACKENDS["numpy"]()
    tensors = load_file(tmp_path / "model.safetensors")
    words = next(tensors.pop(name) for name in tuple(tensors) if name.endswith(("shared.weight", "tokens.weight")))
    for part in ("encoder", "decoder"):
        if names == part or "both" in names:
            step = -1 if (names, part) == ("both", "decoder") else 1
            tensors[f"{part}.embed_tokens.weight"] = words[::step].copy()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.BartModel.from_pretrained(tmp_path)
    model: Any = load(tmp_path, ops)
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5
    assert (model.decoder_word is model.word) == (names != "both")


def save_classifier(folder: Path, **changes: Any) -> Any:
    """A classifier of pairs with RoBERTa's special tokens around words."""
    from tokenizers import models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    theirs = save(folder, "odd", "ForSequenceClassification", vocab_size=len(words), id2label=names, **changes)
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "BartTokenizer", "model_max_length": 40, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return theirs


INPUTS: list[Any] = [
    ("the weather is lovely today", "it is sunny outside"),
    ("he drove to the stadium", ""),
    "",
    "so </s> lovely <pad> outside",
    ("the " * 50, "weather " * 60),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_classifier_reads_the_end_token(backend: str, tmp_path: Path) -> None:
    theirs = save_classifier(tmp_path)
    BACKENDS[backend]()
    with Model(str(tmp_path), backend=backend) as model:
        assert (model.info.model_type, model.info.max_seq_len) == ("bart", 40)
        assert model.info.labels == ("contradiction", "neutral", "entailment")
        ours = model.classify(INPUTS, activation="none")
        assert np.array_equal(ours[::-1], model.classify(INPUTS[::-1], activation="none")) or backend == "torch"
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(40)
    read = [tokenizer.encode(*([value] if isinstance(value, str) else value)).ids for value in INPUTS]
    with torch.no_grad():
        expected = np.concatenate([theirs(torch.tensor([ids])).logits.numpy() for ids in read])
    assert max(map(len, read)) == 40
    assert np.abs(ours - expected).max() <= 1e-5


def test_ids_without_the_end_token_are_refused(tmp_path: Path) -> None:
    theirs = save_classifier(tmp_path)
    with Model(str(tmp_path)) as model:
        with pytest.raises(InvalidRequest, match="input 1 ends with token 9, .* reads its end token, 2: end ids with"):
            model.classify([[0, 8, 2], [0, 8, 9]])
        with pytest.raises(InvalidRequest, match="input 0 ends with token .* leave add_special_tokens true of texts"):
            model.classify(["so sunny"], add_special_tokens=False)
        with pytest.raises(InvalidRequest, match="input 0 was cut to 40 tokens and has lost its end token, 2, which"):
            model.classify([[0, 8] * 30 + [2]])
        ours = model.classify([[0, 8, 2, 9, 2]], activation="none")
    with torch.no_grad():
        assert np.abs(ours - theirs(torch.tensor([[0, 8, 2, 9, 2]])).logits.numpy()).max() <= 1e-5


def test_several_end_tokens(tmp_path: Path) -> None:
    save_classifier(tmp_path)
    config = read_json(tmp_path, "config.json")
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": [2, 3]}))
    with pytest.raises(CheckpointError, match=r"eos_token_id \[2, 3\]; this head reads the one"):
        Model(str(tmp_path))


def test_config_defaults_are_those_of_transformers() -> None:
    theirs = transformers.BartConfig()
    needed = ("vocab_size", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim",
              "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim")  # fmt: skip
    config = BartConfig.from_hf({key: getattr(theirs, key) for key in needed})
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert config.decoder_start_token_id == theirs.decoder_start_token_id
    assert (config.activation, config.word_scale, config.hidden_size) == ("gelu", 1.0, theirs.d_model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": None}, "d_model is missing"),
        ({"decoder_layers": None}, "decoder_layers is missing"),
        ({"decoder_attention_heads": 7}, "d_model 60 is not a multiple of decoder_attention_heads 7"),
        ({"encoder_attention_heads": 7}, "hidden_size 60 is not a multiple of num_attention_heads 7"),
        ({"decoder_start_token_id": 101}, "decoder_start_token_id 101 of 101 tokens"),
        ({"hidden_size": 64}, "d_model is 60, but hidden_size is 64; remove one"),
        ({"activation_function": "quick_gelu"}, "activation_function 'quick_gelu' is not one of gelu"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    hf = {**COMMON, **SHAPES["odd"], **change}
    with pytest.raises(CheckpointError, match=message):
        BartConfig.from_hf({key: value for key, value in hf.items() if value is not None})
