"""T5's encoder and mT5's against transformers' T5EncoderModel and MT5EncoderModel, and in sentence-transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.errors import CheckpointError
from rtp_llm.models.t5 import T5Config
from tests.backends import BACKENDS
from tests.conftest import WORDS
from tests.models.oracle import (
    add_noise,
    assert_alone_and_in_any_order,
    assert_as_exact,
    hidden_states,
    load,
    make_items,
    reference,
    untyped,
    worst,
)
from tests.models.test_layers import layers
from tests.models.test_layers import reference as every_layer
from tests.models.test_wanted import assert_same, last_states

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = {"vocab_size": 101, "num_decoder_layers": 1}
SHAPES: dict[str, dict[str, Any]] = {
    "original": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    # Heads are wider together than the layers.
    "gated": {
        "d_model": 60, "d_kv": 20, "d_ff": 77, "num_layers": 3, "num_heads": 5, "feed_forward_proj": "gated-gelu",
    },
    "other buckets": {
        "d_model": 40, "d_kv": 24, "d_ff": 33, "num_layers": 1, "num_heads": 1, "feed_forward_proj": "gated-silu",
        "relative_attention_num_buckets": 14, "relative_attention_max_distance": 37, "layer_norm_epsilon": 1e-3,
    },
}  # fmt: skip
LENGTHS = (1, 2, 17, 64, 7, 300)


def save(folder: Path, shape: str, head: str = "EncoderModel", **changes: Any) -> Any:
    """A random checkpoint in which distance matters."""
    torch.manual_seed(0)
    config = transformers.T5Config(**{**COMMON, **SHAPES[shape], **changes})
    config._attn_implementation = "eager"
    model = getattr(transformers, f"T5{head}")(config).eval()
    add_noise(model)
    with torch.no_grad():
        model.base_model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_()
    model.save_pretrained(folder)
    return model


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
    model = load(tmp_path, ops)
    assert_alone_and_in_any_order(model, ops, items)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wanted_rows_and_every_layer(backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, "gated"), untyped(make_items((5, 1, 33, 17, 2))), BACKENDS[backend]()
    model = load(tmp_path, ops)
    every = last_states(model, ops, items, "all")
    assert_same(backend, last_states(model, ops, items, "first"), np.stack([rows[0] for rows in every]))
    assert_same(backend, last_states(model, ops, items, "last"), np.stack([rows[-1] for rows in every]))
    assert max(map(worst, layers(model, ops, items), every_layer(theirs, items))) <= 1e-5


def test_a_decoder_is_left_unread(tmp_path: Path) -> None:
    theirs, items, ops = (
        save(tmp_path, "original", "ForConditionalGeneration"),
        untyped(make_items(LENGTHS)),
        BACKENDS["numpy"](),
    )
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.encoder, items)) <= 1e-5


@pytest.mark.parametrize("is_alone", [True, False])
def test_the_table_of_words_by_its_other_name(is_alone: bool, tmp_path: Path) -> None:
    """Where a checkpoint has both, with different numbers, transformers does not tie them: the encoder's is read."""
    from safetensors.numpy import load_file, save_file

    save(tmp_path, "original")
    items, ops = untyped(make_items(LENGTHS)), BACKENDS["numpy"]()
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"][::-1].copy()
    if is_alone:
        del tensors["shared.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.T5EncoderModel.from_pretrained(tmp_path)
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


def as_transformer(folder: Path, max_seq_length: int | None = None, **changes: Any) -> Any:
    """sentence-transformers' Transformer of a T5 with a tokenizer of its own; `changes` are of config.json."""
    modules = pytest.importorskip("sentence_transformers.models")
    save(folder, "gated", vocab_size=4 + len(WORDS), **changes)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0), *((f"▁{word}", -1.0) for word in WORDS)]
    transformers.T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    return modules.Transformer(str(folder), max_seq_length=max_seq_length)


def test_as_sentence_transformers_lays_it_out(tmp_path: Path) -> None:
    """Of sentence-t5 and gtr-t5: mean, a linear layer without bias, length one."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    first = as_transformer(tmp_path / "plain", 30)
    torch.manual_seed(0)
    chain = [
        first,
        modules.Pooling(60, "mean"),
        modules.Dense(60, 24, bias=False, activation_function=torch.nn.Identity()),
        modules.Normalize(),
    ]
    theirs = sentence_transformers.SentenceTransformer(modules=chain, device="cpu")
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    texts = ["", "the weather is lovely today", "he drove to stadium " * 20, "unknown words"]
    with Model(str(tmp_path / "saved")) as model:
        assert (model.info.model_type, model.info.max_seq_len) == ("t5", 30)
        ours = model.embed(texts)
        assert np.array_equal(np.stack([model.embed(text) for text in texts]), ours)
    assert np.abs(ours - theirs.encode(texts, show_progress_bar=False)).max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "skips"), [("instructor-large", True), ("Instructor-XL", True), ("instructor", False)]
)
def test_an_instructor_leaves_its_instruction_out(name: str, skips: bool, tmp_path: Path) -> None:
    """Known by its name alone; sentence-transformers too asks what it is called on the hub."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    chain = [as_transformer(tmp_path / "plain"), modules.Pooling(60, "mean"), modules.Normalize()]
    theirs = sentence_transformers.SentenceTransformer(modules=chain, device="cpu")
    theirs.save(str(tmp_path / name), create_model_card=False)
    theirs.set_pooling_include_prompt(not skips)
    texts, prompt = ["the weather is lovely today", "", "so sunny outside"], "query : the stadium "
    with Model(str(tmp_path / name)) as model:
        ours = model.embed(texts, prompt=prompt)
        bare = model.embed(texts)
    assert np.abs(ours - theirs.encode(texts, prompt=prompt, show_progress_bar=False)).max() <= 1e-5
    assert np.abs(bare - theirs.encode(texts, show_progress_bar=False)).max() <= 1e-5


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("head", ["EncoderModel", "ForConditionalGeneration"])
def test_mt5(head: str, named: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {key: value for key, value in SHAPES["gated"].items() if key != "feed_forward_proj"}
    theirs = getattr(transformers, f"MT5{head}")(transformers.MT5Config(**COMMON, **shape)).eval()
    add_noise(theirs)
    theirs.save_pretrained(tmp_path)
    if not named:
        path, words = tmp_path / "config.json", ("feed_forward_proj", "is_gated_act", "dense_act_fn")
        config = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in config.items() if key not in words}))
    items, ops = untyped(make_items(LENGTHS)), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.encoder, items)) <= 1e-5


@pytest.mark.parametrize(("limit", "expected"), [(None, 1 << 16), (40, 40)])
def test_n_positions_is_no_limit(limit: int | None, expected: int, tmp_path: Path) -> None:
    """As in sentence-transformers: a text is cut at the tokenizer's limit, or not at all."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    first = as_transformer(tmp_path / "plain", n_positions=16)
    if limit is not None:
        first.tokenizer.model_max_length = limit
    theirs = sentence_transformers.SentenceTransformer(modules=[first, modules.Pooling(60, "mean")], device="cpu")
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    texts = ["the weather is lovely today", "he drove to stadium " * 9 + "so sunny outside " * 9]
    with Model(str(tmp_path / "saved")) as model:
        assert model.info.max_seq_len == expected
        ours = model.embed(texts)
    assert np.abs(ours - theirs.encode(texts, show_progress_bar=False)).max() <= 1e-5


@pytest.mark.parametrize("change", [{"dense_act_fn": "silu"}, {"feed_forward_proj": "gated-relu"}])
def test_what_is_made_of_feed_forward_proj_stands_over_it(change: dict[str, str], tmp_path: Path) -> None:
    save(tmp_path, "gated")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    theirs, ops = transformers.T5EncoderModel.from_pretrained(tmp_path), BACKENDS["numpy"]()
    items = untyped(make_items((5, 17)))
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-quick_gelu"}, "feed_forward_proj 'gated-quick_gelu' is not one of gelu"),
        ({"d_kv": None}, "d_kv is missing"),
        ({"is_decoder": True}, "is_decoder or is_causal is true; of T5 the encoder is served"),
        ({"architectures": ["T5ForSequenceClassification"]}, "T5ForSequenceClassification, whose head reads the"),
        ({"architectures": ["MT5ForSequenceClassification"]}, "has MT5ForSequenceClassification, whose head reads"),
        ({"num_hidden_layers": 9}, "num_layers is 2, but num_hidden_layers is 9; remove one"),
        ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets 3, .* at least 4 buckets are needed"),
        ({"relative_attention_max_distance": 8}, "max_distance 8; .* a distance over a quarter of them"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    hf = {**COMMON, **SHAPES["original"], **change}
    with pytest.raises(CheckpointError, match=message):
        T5Config.from_hf({key: value for key, value in hf.items() if value is not None})
