"""The encoders that are BERT but for names and embeddings, against transformers: DistilBERT, ELECTRA, ALBERT, MPNet."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.checkpoint import read_json
from rtp_llm.core import Item
from rtp_llm.errors import CheckpointError
from rtp_llm.models import find_model_type
from rtp_llm.models.albert import Albert
from rtp_llm.models.bert import Electra
from rtp_llm.models.distance import distance_buckets
from rtp_llm.models.distilbert import DistilBert
from rtp_llm.models.mpnet import MPNet
from tests.backends import BACKENDS
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

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = {"vocab_size": 101, "max_position_embeddings": 96, "initializer_range": 0.1}
ODD = {"hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 77, "num_hidden_layers": 3}
EVEN = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}
# transformers' stem and configuration
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "distilbert": ("DistilBert", {"dim": 60, "n_heads": 5, "hidden_dim": 77, "n_layers": 3}),
    "distilbert, relu": (
        "DistilBert",
        {"dim": 64, "n_heads": 4, "hidden_dim": 128, "n_layers": 2, "activation": "relu", "sinusoidal_pos_embds": True},
    ),
    "electra": ("Electra", {**EVEN, "embedding_size": 64, "hidden_act": "gelu_new"}),
    "electra, narrow tables": ("Electra", {**ODD, "embedding_size": 17, "type_vocab_size": 3}),
    "albert": ("Albert", {**EVEN, "embedding_size": 64}),
    "albert, groups": ("Albert", {**ODD, "embedding_size": 17, "num_hidden_groups": 2, "hidden_act": "relu"}),
    "mpnet": ("MPNet", {**ODD, "max_position_embeddings": 312}),
    "mpnet, relu": ("MPNet", {**EVEN, "hidden_act": "relu"}),
    "ernie": ("Ernie", ODD),
    "ernie, tasks": ("Ernie", {**EVEN, "use_task_id": True, "task_type_vocab_size": 2}),
    "megatron": ("MegatronBert", {**ODD, "hidden_act": "gelu_new"}),
    "megatron, decoder": ("MegatronBert", {**EVEN, "is_decoder": True}),
    "xlm-roberta-xl": ("XLMRobertaXL", {**ODD, "type_vocab_size": 1, "pad_token_id": 3}),
}
LENGTHS = (1, 2, 17, 64, 7, 90)


def save(folder: Path, family: str, head: str = "Model", **changes: Any) -> Any:
    """A random checkpoint whose norms and biases are not trivial."""
    stem, shape = FAMILIES[family]
    config = getattr(transformers, f"{stem}Config")(**{**COMMON, **shape, **changes})
    config._attn_implementation = "eager"
    return saved(folder, getattr(transformers, stem + head), config)


def items_of(family: str) -> list[Item]:
    """For MPNet one that is longer than the distances that it tells apart, and no padding tokens."""
    items = make_items((*LENGTHS, 300) if family == "mpnet" else LENGTHS)
    for item in items if "mpnet" in family else ():
        item.input_ids = np.maximum(item.input_ids, 2)
    return items if "electra" in family or "albert" in family else untyped(items)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(family: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, family), items_of(family), BACKENDS[backend]()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert_as_exact(theirs, ours, items)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_alone_in_any_order_bit_for_bit(family: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, family)
    ops, items = BACKENDS[backend](), items_of(family)
    model = load(tmp_path, ops)
    assert_alone_and_in_any_order(model, ops, items)


HEADS = {
    "albert": ("ForMaskedLM", "ForSequenceClassification", "ForPreTraining"),
    "distilbert": ("ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering"),
    "electra": ("ForMaskedLM", "ForSequenceClassification", "ForPreTraining"),
    "mpnet": ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"),
}


@pytest.mark.parametrize(("family", "head"), [(family, head) for family, heads in HEADS.items() for head in heads])
def test_prefixed_checkpoints_load_and_heads_are_ignored(family: str, head: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, family, head), items_of(family), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.base_model, items)) <= 1e-5
    architecture = {"architectures": read_json(tmp_path, "config.json")["architectures"]}
    assert find_model_type("auto", architecture) == family


def test_tables_are_narrow_by_default_as_in_transformers(tmp_path: Path) -> None:
    shape = {key: value for key, value in FAMILIES["electra"][1].items() if key != "embedding_size"}
    assert Electra.read_config({**COMMON, **shape}).embedding_size == transformers.ElectraConfig().embedding_size


def test_buckets_are_those_of_transformers() -> None:
    distances = torch.arange(-128, 129)
    expected = transformers.models.mpnet.modeling_mpnet.MPNetEncoder.relative_position_bucket(distances)
    assert np.array_equal(distance_buckets(32, 128), expected.numpy())
    t5 = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    for num_buckets, max_distance in ((32, 128), (4, 2), (8, 20), (14, 37), (64, 1000)):
        places = torch.arange(-max_distance, max_distance + 1)
        expected = t5(places, num_buckets=num_buckets, max_distance=max_distance)
        assert np.array_equal(distance_buckets(num_buckets, max_distance), expected.numpy())
        beyond = t5(torch.tensor([-9 * max_distance, 9 * max_distance]), True, num_buckets, max_distance)
        assert beyond.tolist() == expected[[0, -1]].tolist()


def test_mpnet_has_as_many_buckets_as_it_has() -> None:
    hf = {**COMMON, **ODD, "relative_attention_num_buckets": 16}
    with pytest.raises(CheckpointError, match="relative_attention_num_buckets 16; MPNet computes with 32"):
        MPNet.read_config(hf)


@pytest.mark.parametrize("pad", [0, 1])
def test_mpnets_padding_token_is_the_first_whatever_config_json_says(pad: int, tmp_path: Path) -> None:
    theirs, ops = save(tmp_path, "mpnet", pad_token_id=pad), BACKENDS["numpy"]()
    rows = ([1], [5, 1, 1, 7, 9], [0, 8, 2, 0], [9] * 20)
    items = [Item(np.array(row, np.int32), index) for index, row in enumerate(rows)]
    model = load(tmp_path, ops)
    assert model.max_positions == 310
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


def test_layers_of_albert_share_weights(tmp_path: Path) -> None:
    save(tmp_path, "albert, groups")
    model: Any = load(tmp_path, BACKENDS["numpy"]())
    first, second, third = model.layers
    assert first is second and second is not third and model.config.groups == [0, 0, 1]
    assert model.matrices[1, "up"] == ("encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner_group_num": 2}, "inner_group_num 2; only 1 is supported"),
        ({"num_hidden_groups": 4}, "num_hidden_groups 4 of 3 layers"),
    ],
)
def test_refusals_of_albert(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Albert.read_config({**COMMON, **ODD, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "quick_gelu"}, "activation 'quick_gelu' is not one of gelu"),
        ({"n_heads": 7}, "not a multiple of num_attention_heads 7"),
        ({"dim": None}, "dim is missing"),
        ({"hidden_size": 4}, "dim is .*, but hidden_size is 4; remove one"),
        ({"n_layers": None}, "n_layers is missing"),
    ],
)
def test_refusals_name_distilberts_keys(change: dict[str, Any], message: str) -> None:
    hf = {**COMMON, **FAMILIES["distilbert"][1], **change}
    with pytest.raises(CheckpointError, match=message):
        DistilBert.read_config({key: value for key, value in hf.items() if value is not None})
