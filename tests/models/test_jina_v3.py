"""Jina Embeddings v3 against transformers: both layouts, adapters merged as their paper adds them; jina-reranker-v2."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.checkpoint import AdaptedSource, open_tensors
from rtp_llm.errors import CheckpointError
from rtp_llm.models import find_model_type
from rtp_llm.models.jina_v3 import JinaV3
from rtp_llm.ops.native_ops import NativeOps
from tests.backends import BACKENDS
from tests.models.oracle import (
    add_noise,
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
safetensors = pytest.importorskip("safetensors.torch")

LENGTHS = (1, 2, 17, 64, 7, 90)
SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 130, "initializer_range": 0.1,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {"hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 77, "num_hidden_layers": 3},
    "one head": {"hidden_size": 40, "num_attention_heads": 1, "num_hidden_layers": 1},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 70.0}, "hidden_act": "gelu_new"},
}
TASKS = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
# config.json of jina-embeddings-v3, in small.
HUB: dict[str, Any] = {
    **SHAPE, "architectures": ["XLMRobertaModel"], "position_embedding_type": "rotary", "rotary_emb_base": 20000.0,
    "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"},
    "hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 1, "lora_adaptations": TASKS, "lora_alpha": 1,
    "lora_rank": 4, "lora_dropout_p": 0.0, "lora_main_params_trainable": False, "load_trained_adapters": True,
}  # fmt: skip
RANK = 4


def save(folder: Path, head: str = "Model", **changes: Any) -> Any:
    config = transformers.JinaEmbeddingsV3Config(**{**SHAPE, **changes})
    return saved(folder, getattr(transformers, f"JinaEmbeddingsV3{head}"), config, save_original_format=False)


def authors_names(model: Any) -> dict[str, Any]:
    """transformers' tensors by the names of the authors' code, which has queries, keys and values in one."""
    tensors = {f"roberta.{name}": values.clone() for name, values in model.state_dict().items()}
    for kind in ("weight", "bias"):
        for i in range(model.config.num_hidden_layers):
            parts = [tensors.pop(f"roberta.layers.{i}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            tensors[f"roberta.layers.{i}.mixer.Wqkv.{kind}"] = torch.cat(parts)
    renames = (
        ("roberta.embeddings.LayerNorm", "roberta.emb_ln"), ("roberta.layers", "roberta.encoder.layers"),
        ("self_attn.o_proj", "mixer.out_proj"), ("post_attention_layernorm", "norm1"), ("post_mlp_layernorm", "norm2"),
    )  # fmt: skip
    for theirs, hub in renames:
        tensors = {name.replace(theirs, hub): values for name, values in tensors.items()}
    return tensors


def with_adapters(tensors: dict[str, Any]) -> dict[str, Any]:
    """Beside each matrix and table, those of five tasks."""
    result = {}
    for name, values in tensors.items():
        if values.dim() < 2:
            result[name] = values
            continue
        rows, columns = values.shape
        left, right = 0.3 * torch.randn(len(TASKS), rows, RANK), 0.3 * torch.randn(len(TASKS), RANK, columns)
        is_table, stem = "embeddings" in name, name.removesuffix(".weight") + ".parametrizations.weight."
        result[f"{stem}original"] = values
        result[f"{stem}0.lora_A"], result[f"{stem}0.lora_B"] = (left, right) if is_table else (right, left)
    return result


def write(folder: Path, tensors: dict[str, Any], **config: Any) -> None:
    safetensors.save_file({name: values.contiguous() for name, values in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, **SHAPES[shape]), untyped(make_items(LENGTHS)), BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert_as_exact(theirs, hidden_states(model, ops, items), items)
    assert (model.max_positions, model.learnt_positions) == (130, False)


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_equals_alone_in_any_order_bit_for_bit(backend: str, tmp_path: Path) -> None:
    save(tmp_path, **SHAPES["odd"])
    ops = BACKENDS[backend]()
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, untyped(make_items((*LENGTHS, 140))))


def test_the_length_that_yarn_stretches_may_stand_beside_it(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0}
    theirs = save(tmp_path, rope_parameters=dict(yarn), original_max_position_embeddings=24)
    path, ops, items = tmp_path / "config.json", BACKENDS["numpy"](), untyped(make_items(LENGTHS))
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": yarn}))
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_prefixed_checkpoints_load_and_heads_are_ignored(head: str, tmp_path: Path) -> None:
    theirs, ops, items = save(tmp_path, head), BACKENDS["numpy"](), untyped(make_items(LENGTHS))
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.roberta, items)) <= 1e-5


@pytest.mark.parametrize("task", [None, *TASKS])
def test_an_adapter_is_added_to_every_weight(task: str | None, tmp_path: Path) -> None:
    theirs = save(tmp_path)
    tensors = with_adapters(authors_names(theirs))
    write(tmp_path, tensors, **HUB, **({"lora_task": task} if task else {}))
    merged = {name: values for name, values in tensors.items() if ".parametrizations." not in name}
    for name, values in tensors.items():
        if name.endswith(".original"):
            stem, number = name.removesuffix("original"), TASKS.index(task) if task else 0
            left, right = tensors[f"{stem}0.lora_B"][number], tensors[f"{stem}0.lora_A"][number]
            product = right @ left if "embeddings" in name else left @ right
            merged[name.replace(".parametrizations.weight.original", ".weight")] = (
                values + product / RANK if task else values
            )
    place = tmp_path / "merged"
    place.mkdir()
    write(place, merged, **HUB)
    ops, items = NativeOps(), untyped(make_items(LENGTHS))
    model = load(tmp_path, ops)
    assert (model.adapters, model.merged_adapter) == ((), task) if task else (tuple(TASKS), "")
    ours = hidden_states(model, ops, items)
    assert worst(ours, hidden_states(load(place, ops), ops, items)) <= 1e-5
    assert (worst(ours, reference(theirs, items)) <= 1e-5) == (task is None)


def test_what_an_adapted_source_gives(tmp_path: Path) -> None:
    theirs = save(tmp_path)
    write(tmp_path, with_adapters(authors_names(theirs)), **HUB)
    source = open_tensors(tmp_path)
    adapted, name = AdaptedSource(source, 2, 0.25), "roberta.embeddings.word_embeddings.weight"
    whole = adapted.read(name)
    assert adapted.tensors[name].shape == whole.shape == (101, 64) and len(adapted.tensors) < len(source.tensors)
    assert np.array_equal(adapted.read_part(name, 0, 5, 6), whole[5:6])
    assert np.array_equal(adapted.read_part(name, 1, 3, 9), whole[:, 3:9])
    assert adapted.file(name) == tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="has 5 adapters, but lora_adaptations of config.json names 6"):
        AdaptedSource(source, 5, 0.25).read(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_task": "summary"}, "lora_task 'summary' is not one of the checkpoint's adapters: retrieval.query"),
        ({"lora_task": "a", "lora_adaptations": None}, "adapters: none: it has no lora_adaptations"),
        ({"lora_task": "separation"}, "has no adapters, but lora_task is 'separation'"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type 'alibi'; only 'rotary'"),
        ({"is_decoder": True}, "is_decoder true"),
    ],
)
def test_refusals(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, authors_names(save(tmp_path)), **{**HUB, **change})
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, BACKENDS["numpy"](), "jina_embeddings_v3")


def test_it_is_told_from_xlm_roberta() -> None:
    assert find_model_type("auto", HUB) == "jina_embeddings_v3"
    assert JinaV3.read_config(HUB).rope.theta == 20000.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_xlm_roberta_by_the_names_of_the_flash_code(backend: str, tmp_path: Path) -> None:
    """As jina-reranker-v2 has it: learnt positions, and a classifier."""
    torch.manual_seed(0)
    shape = {**SHAPE, "type_vocab_size": 1, "num_labels": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    theirs = transformers.XLMRobertaForSequenceClassification(transformers.XLMRobertaConfig(**shape)).eval()
    add_noise(theirs)
    tensors = {name: values.clone() for name, values in theirs.state_dict().items() if "position_ids" not in name}
    for kind in ("weight", "bias"):
        for i in range(2):
            prefix = f"roberta.encoder.layer.{i}.attention.self."
            parts = [tensors.pop(f"{prefix}{part}.{kind}") for part in ("query", "key", "value")]
            tensors[f"roberta.encoder.layers.{i}.mixer.Wqkv.{kind}"] = torch.cat(parts)
    renames = (
        ("embeddings.LayerNorm", "emb_ln"), ("encoder.layer.", "encoder.layers."),
        ("attention.output.dense", "mixer.out_proj"), ("attention.output.LayerNorm", "norm1"),
        ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"), ("output.LayerNorm", "norm2"),
    )  # fmt: skip
    for name, hub in renames:
        tensors = {old.replace(name, hub): values for old, values in tensors.items()}
    write(tmp_path, tensors, **shape, architectures=["XLMRobertaForSequenceClassification"])
    items, ops = untyped(make_items(LENGTHS)), BACKENDS[backend]()
    assert_as_exact(theirs.roberta, hidden_states(load(tmp_path, ops), ops, items), items)
