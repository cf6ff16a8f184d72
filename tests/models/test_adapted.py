"""Adapters that each sequence chooses: as transformers with them merged, whatever the neighbours have, bit for bit."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.checkpoint import AdapterFolders, open_tensors, resolved
from rtp_llm.config import EngineConfig
from rtp_llm.core import NO_ADAPTER, Item, Prefixes, pack
from rtp_llm.errors import CheckpointError
from rtp_llm.models import Model, adapted
from rtp_llm.ops import Ops
from tests.backends import BACKENDS
from tests.checkpoint.test_lora import numbers, pair, start_again, write_adapter
from tests.models import test_jina_v3 as v3
from tests.models import test_jina_v5 as v5
from tests.models.oracle import hidden_states, load, make_items, reference, untyped, worst

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LENGTHS = (1, 2, 17, 64, 7, 90)
# Of the items, in their order: two neighbours of one, some without.
CHOICES = (0, 3, NO_ADAPTER, 1, 1, NO_ADAPTER)
KINDS = ("v3", "v5 Qwen3", "v5 EuroBert")


def save(folder: Path, kind: str) -> tuple[Any, list[dict[str, Any]]]:
    """A checkpoint with four adapters or more -> transformers' model, and what each adapter adds, by its modules."""
    start_again()
    return _save_v3(folder) if kind == "v3" else _save_v5(folder, kind.removeprefix("v5 "))


def _save_v3(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    theirs = v3.save(folder)
    tensors = v3.with_adapters(v3.authors_names(theirs))
    v3.write(folder, tensors, **v3.HUB)
    return theirs, [_added(tensors, number) for number in range(len(v3.TASKS))]


def _added(tensors: dict[str, Any], number: int) -> dict[str, Any]:
    """By transformers' names, which have queries, keys and values apart."""
    found = {}
    for name in (name for name in tensors if name.endswith(".original")):
        stem = name.removesuffix("original")
        a, b = tensors[f"{stem}0.lora_A"][number], tensors[f"{stem}0.lora_B"][number]
        product = (a @ b if "embeddings" in name else b @ a) / v3.RANK
        theirs = name.removeprefix("roberta.").removesuffix(".parametrizations.weight.original")
        theirs = theirs.replace("encoder.layers.", "layers.").replace("mixer.out_proj", "self_attn.o_proj")
        if "mixer.Wqkv" in theirs:
            for part, rows in zip("qkv", product.chunk(3), strict=True):
                found[theirs.replace("mixer.Wqkv", f"self_attn.{part}_proj")] = rows
        else:
            found[theirs] = product
    return found


def _save_v5(folder: Path, family: str) -> tuple[Any, list[dict[str, Any]]]:
    """Some of an adapter's modules are not another's, and their ranks differ."""
    theirs, parts = v5.save(folder, family)
    shapes = {name: values.shape for name, values in theirs.state_dict().items()}
    modules = {
        "classification": ("layers.0.mlp.up_proj", "layers.0.mlp.down_proj", "layers.1.self_attn.o_proj"),
        "clustering": ("layers.0.self_attn.v_proj", "layers.0.self_attn.k_proj", "layers.1.mlp.gate_proj"),
    }
    for task, stems in modules.items():
        parts[task] = {name: own for stem in stems for name, own in pair(stem, *shapes[f"{stem}.weight"]).items()}
    rows, columns = shapes["embed_tokens.weight"]
    parts["clustering"] |= {"embed_tokens.lora_embedding_A": numbers(3, rows)}
    parts["clustering"] |= {"embed_tokens.lora_embedding_B": numbers(columns, 3)}
    for task in modules:
        write_adapter(folder / "adapters" / task, parts[task])
    return theirs, [_sums(parts[task]) for task in sorted(parts)]


def _sums(parts: dict[str, Any]) -> dict[str, Any]:
    """Scaled as `write_adapter` says it: by 6 / 3."""
    stems = dict.fromkeys(name.partition(".lora_")[0] for name in parts)
    found = {}
    for stem in stems:
        a, b = (torch.from_numpy(values) for name, values in parts.items() if name.startswith(f"{stem}.lora_"))
        found[stem] = 2 * (b @ a).T if "embed" in stem else 2 * b @ a
    return found


def theirs(plain: Any, products: list[dict[str, Any]], items: list[Item], kind: str) -> list[Any]:
    """Of transformers' model with each item's adapter added to its weights, in fp32 ("float") or fp64 ("double")."""
    found: dict[int, Any] = {}
    for adapter in {item.adapter for item in items}:
        model = getattr(type(plain)(plain.config).eval(), kind)()
        state = {name: getattr(values, kind)() for name, values in plain.state_dict().items()}
        own = {} if adapter == NO_ADAPTER else products[adapter]
        model.load_state_dict(state | {f"{name}.weight": state[f"{name}.weight"] + own[name] for name in own})
        asked = [item for item in items if item.adapter == adapter]
        found |= {item.index: rows for item, rows in zip(asked, reference(model, asked), strict=True)}
    return [found[item.index] for item in items]


def adapted_items(choices: Sequence[int] = CHOICES) -> list[Item]:
    items = untyped(make_items(LENGTHS))
    return [replace(item, adapter=adapter) for item, adapter in zip(items, choices, strict=True)]


@pytest.fixture(params=["together", "apart"])
def _products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapters of a weight in one product, or each in its own, as larger ones are."""
    if request.param == "apart":
        monkeypatch.setattr(adapted, "_MOST_TOGETHER", 0)


def rows(model: Model, ops: Ops, items: list[Item], reads: Any, prefixes: Prefixes | None = None) -> Any:
    return ops.to_numpy(model(ops, ops.upload(model.prepare(pack(items, reads, prefixes)))))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("_products")
def test_each_sequence_has_its_own(kind: str, backend: str, tmp_path: Path) -> None:
    plain, products = save(tmp_path, kind)
    ops, items = BACKENDS[backend](), adapted_items()
    model = load(tmp_path, ops)
    assert len(model.adapters) == len(products) and model.needs_adapter == (kind != "v3")
    ours = hidden_states(model, ops, items)
    in_fp32, truth = (theirs(plain, products, items, kind) for kind in ("float", "double"))
    assert worst(ours, truth) <= 2 * worst(in_fp32, truth)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("_products")
def test_neighbours_do_not_show(kind: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, kind)
    ops, items = BACKENDS[backend](), adapted_items()
    model = load(tmp_path, ops)
    together, backwards = hidden_states(model, ops, items), hidden_states(model, ops, items[::-1])[::-1]
    for item, row, other in zip(items, together, backwards, strict=True):
        np.testing.assert_array_equal(row, other)
        np.testing.assert_array_equal(row, hidden_states(model, ops, [item])[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", ["none", "int8", "int4_weights"])
@pytest.mark.usefixtures("_products")
def test_without_one_it_is_the_plain_model(quantization: Any, kind: str, tmp_path: Path) -> None:
    """Bit for bit, also where the weight is quantised: it is not touched."""
    theirs, _ = save(tmp_path, kind)
    bare = tmp_path / "bare"
    theirs.save_pretrained(bare, **({"save_original_format": False} if kind == "v3" else {}))
    ops, items = BACKENDS["native"](), adapted_items()
    model, other = load(tmp_path, ops.fork(quantization)), load(bare, ops.fork(quantization))
    ours, expected = hidden_states(model, ops, items), hidden_states(other, ops, items)
    same = [np.array_equal(left, right) for left, right in zip(ours, expected, strict=True)]
    assert same == [item.adapter == NO_ADAPTER for item in items]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reads", ["first", "last"])
def test_of_the_wanted_rows(reads: Any, backend: str, tmp_path: Path) -> None:
    save(tmp_path, "v3")
    ops, items = BACKENDS[backend](), adapted_items()
    model = load(tmp_path, ops)
    whole = hidden_states(model, ops, items)
    expected = np.stack([own[0 if reads == "first" else -1] for own in whole])
    np.testing.assert_allclose(rows(model, ops, items, reads), expected, atol=1e-5 if backend == "torch" else 0)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.usefixtures("_products")
def test_what_sequences_begin_with_has_their_adapter(backend: str, tmp_path: Path) -> None:
    save(tmp_path, "v5 Qwen3")
    ops, start = BACKENDS[backend](), np.arange(5, dtype=np.int32)
    model = load(tmp_path, ops)
    items = [replace(item, input_ids=np.r_[start, item.input_ids], prompt_length=5) for item in adapted_items()]
    prefixes = Prefixes.find(items, {})
    assert len(prefixes.new) == 2 and sorted(prefixes.adapters) == [NO_ADAPTER, 1]  # of several items each
    alone = [rows(model, ops, [item], "last")[0] for item in items]
    np.testing.assert_array_equal(rows(model, ops, items, "last", prefixes), np.stack(alone))


def test_quantised_weights_have_exact_adapters(tmp_path: Path) -> None:
    save(tmp_path, "v3")
    ops, items = BACKENDS["native"](), adapted_items()
    exact, quantised = load(tmp_path, ops), load(tmp_path, ops.fork("int8"))
    left, right = (np.concatenate(hidden_states(model, ops, items)) for model in (exact, quantised))
    cosines = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    assert cosines.min() > 0.99


def test_an_adapter_with_tensors_of_its_own_is_for_all(tmp_path: Path) -> None:
    v5.save(tmp_path, "Qwen3")
    write_adapter(
        tmp_path / "adapters" / "retrieval", {**pair("layers.1.self_attn.q_proj", 96, 64), "norm.weight": numbers(64)}
    )
    with pytest.raises(CheckpointError, match="retrieval: .*norm.weight comes in the place .*lora_task.*retrieval"):
        open_tensors(tmp_path)
    chosen = EngineConfig(checkpoint_path=str(tmp_path), json_model_override_args='{"lora_task": "text-matching"}')
    with resolved(chosen) as folder:
        assert not isinstance(open_tensors(folder), AdapterFolders)
