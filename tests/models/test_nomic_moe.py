"""nomic-embed-text-v2-moe against its oracle in plain torch: which layers have experts, how many, of which sizes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.checkpoint import open_tensors
from rtp_llm.core import Batch, Item, pack
from rtp_llm.errors import CheckpointError
from rtp_llm.models.nomic_bert import NomicBert
from rtp_llm.ops import Tensor
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.native_recording import record
from tests.backends import BACKENDS
from tests.models import test_nomic_bert
from tests.models.nomic_moe import HUB, save
from tests.models.oracle import (
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
from tests.models.test_layers import reference as reference_layers
from tests.models.test_wanted import assert_same, last_states

pytest.importorskip("torch")

LENGTHS = (1, 2, 17, 64, 7, 90)
ODD = {"n_embd": 60, "n_head": 6, "n_inner": 77, "n_layer": 3, "num_experts": 5}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": ODD,
    "one expert a token": {"moe_top_k": 1},
    "all experts": {"num_experts": 3, "moe_top_k": 3, "n_layer": 2},
    "every third layer": {"moe_every_n_layers": 3, "n_layer": 5},
    "many": {"num_experts": 64, "moe_top_k": 6, "n_layer": 2, "n_inner": 24},
    "none": {"moe_every_n_layers": 0, "num_experts": 0},
    "without biases": {"qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "type_vocab_size": 3},
}


def items_of(lengths: tuple[int, ...] = LENGTHS) -> list[Any]:
    return untyped(make_items(lengths))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_oracle(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, **SHAPES[shape]), items_of((*LENGTHS, 150)), BACKENDS[backend]()
    assert_as_exact(theirs, hidden_states(load(tmp_path, ops), ops, items), items)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_weights_in_16_bits(backend: str, dtype: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, dtype, **ODD), items_of(), BACKENDS[backend]()
    assert_as_exact(theirs, hidden_states(load(tmp_path, ops), ops, items), items)


def test_of_the_published_shape(tmp_path: Path) -> None:
    """But for its vocabulary and number of layers."""
    sizes: dict[str, Any] = {"n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 2}
    theirs, items, ops = save(tmp_path, **sizes), items_of((1, 130, 9)), NativeOps()
    ops.num_threads = 2
    assert_as_exact(theirs, hidden_states(load(tmp_path, ops), ops, items), items)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_layer(backend: str, tmp_path: Path) -> None:
    theirs, ops, items = save(tmp_path), BACKENDS[backend](), items_of()
    ours, expected = layers(load(tmp_path, ops), ops, items), reference_layers(theirs, items)
    assert len(ours) == len(expected) == 5 and max(map(worst, ours, expected)) <= 1e-5


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_equals_alone_in_any_order_bit_for_bit(dtype: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, dtype, **ODD)
    ops = BACKENDS[backend]()
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, items_of((*LENGTHS, 150)))


@pytest.mark.parametrize("quantization", ["int8", "int8_weights", "int4_weights", "bf16"])
def test_quantised_it_stays_near_and_has_the_same_bits_alone(quantization: Any, tmp_path: Path) -> None:
    save(tmp_path)
    ops, items = NativeOps(), items_of()
    model = load(tmp_path, ops.fork(quantization))
    exact, near = (np.concatenate(hidden_states(some, ops, items)) for some in (load(tmp_path, ops), model))
    cosines = (exact * near).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(near, axis=1)
    # Here and there a token has other experts.
    assert np.median(cosines) > (0.95 if quantization == "int4_weights" else 0.995) and (exact != near).any()
    assert_alone_and_in_any_order(model, ops, items)


@pytest.mark.parametrize("reads", ["first", "last"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_wanted_rows(backend: str, reads: Any, tmp_path: Path) -> None:
    save(tmp_path)
    ops, items = BACKENDS[backend](), items_of()
    model = load(tmp_path, ops)
    place = 0 if reads == "first" else -1
    every = np.stack([rows[place] for rows in last_states(model, ops, items, "all")])
    assert_same(backend, last_states(model, ops, items, reads), every)


def test_a_recorded_program_chooses_the_experts_anew(tmp_path: Path) -> None:
    save(tmp_path)
    ops, (first, second) = NativeOps(), items_of((9, 9))
    model = load(tmp_path, ops)

    def compute(batch: Batch) -> Tensor:
        placed = ops.upload(model.prepare(batch))
        return ops.pool(model(ops, placed), placed, "mean")

    row, recording = record(ops, pack([first]), compute)
    assert recording is not None
    others = [recording.run(ops, model.prepare(pack([item]))) for item in (second, first)]
    np.testing.assert_array_equal(others[1], row)
    np.testing.assert_array_equal(others[0], ops.to_numpy(compute(pack([second]))))


def test_texts_through_the_tokenizer_that_it_is_published_with(assets: Path, tmp_path: Path) -> None:
    theirs, tokenizers = save(tmp_path, vocab_size=250048, n_layer=2), pytest.importorskip("tokenizers")
    for file in (assets / "tokenizers" / "xlm-roberta").iterdir():
        shutil.copy(file, tmp_path / file.name)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = ["search_query: hello", "", "search_document: The weather is lovely today. " * 5, "今天天气很好。"]
    items = [Item(np.array(tokenizer.encode(text).ids, np.int32), i) for i, text in enumerate(texts)]
    expected = [rows.mean(axis=0) for rows in reference(theirs, items)]
    with Model(str(tmp_path)) as model:
        assert (model.info.model_type, model.info.dimension) == ("nomic_bert", 64)
        assert worst([*model.embed(texts)], expected) <= 1e-5
        assert np.array_equal(np.stack([model.embed(text) for text in texts]), model.embed(texts))


def test_matrices_are_those_outside_experts(tmp_path: Path) -> None:
    save(tmp_path)
    model = load(tmp_path, BACKENDS["numpy"]())
    assert sorted(name for number, name in model.matrices if number == 1) == ["out", "qkv"]
    assert sorted(name for number, name in model.matrices if number == 2) == ["down", "out", "qkv", "up"]
    assert model.reads_host


def test_a_model_without_experts_reads_nothing_on_the_host(tmp_path: Path) -> None:
    test_nomic_bert.save(tmp_path)
    assert not load(tmp_path, BACKENDS["numpy"]()).reads_host


def test_every_tensor_is_used(tmp_path: Path) -> None:
    save(tmp_path)
    path, ops = tmp_path / "config.json", BACKENDS["numpy"]()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"moe_every_n_layers": 0}, "8 missing: layers.1.mlp.up_proj.*8 unexpected"), ({"num_experts": 4}, "needed"),
        ({"moe_every_n_layers": 3}, "missing"), ({"mlp_fc2_bias": False}, "unexpected: layers.0.mlp.down_proj.bias"),
    ]  # fmt: skip
    for change, message in changes:
        with pytest.raises(CheckpointError, match=message):
            NomicBert.load({**HUB, **change}, open_tensors(path.parent), ops)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": None}, "moe_every_n_layers is 2, but num_experts 0 and moe_top_k 2"),
        ({"moe_top_k": 9}, "num_experts 8 and moe_top_k 9"),
        ({"moe_top_k": 0}, "num_experts 8 and moe_top_k 0"),
        ({"expert_choice_router": True}, "expert_choice_router True; only False"),
        ({"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights True; only False"),
        ({"num_shared_experts": 1}, "num_shared_experts 1; only 0"),
        ({"ffn_div": 2}, "ffn_div 2; only 1"),
        ({"activation_function": "swiglu"}, "activation_function 'swiglu'; only 'gelu'"),
        ({"activation_function": None}, "activation_function 'swiglu'; only 'gelu'"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        NomicBert.read_config({**HUB, **change})


def test_by_the_authors_rule_every_layer_is_none() -> None:
    assert NomicBert.read_config({**HUB, "moe_every_n_layers": 1}).mixture is None
