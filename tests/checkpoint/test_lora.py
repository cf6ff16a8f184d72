"""Adapters in peft's files: what is added to which weight, what is refused, and where the base comes from."""

import json
import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.checkpoint import open_tensors, resolved
from rtp_llm.checkpoint.lora_targets import left_out_by
from rtp_llm.config import EngineConfig
from rtp_llm.errors import CheckpointError

safetensors = pytest.importorskip("safetensors.numpy")

RANK = 3
QUERY = "encoder.layer.0.attention.self.query"
WORD = "embeddings.word_embeddings"
RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


def start_again() -> None:
    """Numbers that come now do not hang on the tests that were run before."""
    RANDOM.bit_generator.state = np.random.default_rng(0).bit_generator.state


def write_adapter(folder: Path, tensors: dict[str, Any], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    own = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(own))
    named = {f"base_model.model.{name}": values for name, values in tensors.items()}
    safetensors.save_file(named, folder / "adapter_model.safetensors")
    return folder


def pair(stem: str, rows: int, columns: int) -> dict[str, Any]:
    return {f"{stem}.lora_A.weight": numbers(RANK, columns), f"{stem}.lora_B.weight": numbers(rows, RANK)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Weights by the names that a head's checkpoint has."""
    folder = tmp_path / "base"
    folder.mkdir()
    weights = {"model.layers.0.q_proj.weight": numbers(5, 4), "model.layers.1.q_proj.weight": numbers(5, 4)}
    weights |= {"model.embed_tokens.weight": numbers(7, 4), "model.norm.weight": numbers(4)}
    safetensors.save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 6 / 3**0.5),
        ({"lora_alpha": 1.5}, 0.5),
        ({"alpha_pattern": {"layers.0.q_proj": 9}}, 3.0),
        ({"alpha_pattern": {"q_proj": 12}}, 4.0),
        ({"alpha_pattern": {"layers.1.q_proj": 9}, "rank_pattern": {"k_proj": 9}}, 2.0),
        ({"target_modules": ["k_proj", "q_proj"], "exclude_modules": ["1.q_proj"], "modules_to_save": ["score"]}, 2.0),
        ({"target_modules": "all-linear", "layers_to_transform": 7}, 2.0),
        ({"target_modules": r"(?:.*(?:self_attn).*(?:q_proj))"}, 2.0),
    ],
)
@pytest.mark.parametrize("root", ["", "model."])
def test_a_product_is_added(settings: dict[str, Any], scaling: float, root: str, base: Path) -> None:
    parts, name = pair(f"{root}layers.0.q_proj", 5, 4), "model.layers.0.q_proj.weight"
    plain = open_tensors(base)
    write_adapter(base, parts, **settings)
    ours, (a, b) = open_tensors(base), parts.values()
    expected = plain.read(name) + scaling * (b.astype(np.float64) @ a)
    assert np.abs(ours.read(name) - expected).max() <= 1e-5
    assert np.array_equal(ours.read_part(name, 0, 2, 3), ours.read(name)[2:3])
    assert np.array_equal(ours.read_part(name, 1, 1, 3), ours.read(name)[:, 1:3])
    for other in ("model.layers.1.q_proj.weight", "model.embed_tokens.weight"):
        assert np.array_equal(ours.read(other), plain.read(other))
        assert np.array_equal(ours.read_part(other, 0, 1, 2), plain.read(other)[1:2])
    assert ours.tensors == plain.tensors and ours.file(name) == base / "model.safetensors"


@pytest.mark.parametrize(
    ("settings", "is_read"),
    [
        ({"layers_to_transform": 3}, True),
        ({"layers_to_transform": [2, 3]}, True),
        ({"layers_to_transform": []}, True),
        ({"layers_to_transform": 2}, False),
        ({"layers_to_transform": 3, "layers_pattern": "layers"}, True),
        ({"layers_to_transform": 3, "layers_pattern": ["h", "layers"]}, True),
        ({"layers_to_transform": 3, "layers_pattern": "h"}, False),
        ({"layers_to_transform": 2, "target_modules": ["model.layers.3.q_proj"]}, True),
        ({"target_modules": r"model\.layers\.3\.q_proj"}, True),
        ({"target_modules": "q_proj"}, False),
    ],
)
def test_a_module_is_one_of_those_that_peft_reads(settings: dict[str, Any], is_read: bool) -> None:
    """As its check_target_module_exists: names are endings, an expression is of the whole name."""
    left_out = left_out_by(
        Path("adapter_config.json"), {"target_modules": ["q_proj"], **settings}, "model.layers.3.q_proj"
    )
    assert (left_out is None) == is_read


def test_tables_whole_tensors_and_new_ones(base: Path) -> None:
    plain, norm, score = open_tensors(base), numbers(4), numbers(2, 4)
    parts = {"embed_tokens.lora_embedding_A": numbers(RANK, 7), "embed_tokens.lora_embedding_B": numbers(4, RANK)}
    write_adapter(base, {**parts, "norm.weight": norm, "score.weight": score})
    ours, (a, b) = open_tensors(base), parts.values()
    table = plain.read("model.embed_tokens.weight") + 2 * (b @ a).T
    assert np.abs(ours.read("model.embed_tokens.weight") - table).max() <= 1e-5
    assert np.array_equal(ours.read("model.norm.weight"), norm)
    assert np.array_equal(ours.read("score.weight"), score) and ours.tensors["score.weight"].shape == (2, 4)
    assert ours.file("score.weight").name == "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({}, {"peft_type": "IA3"}, "adapter_config.json: peft_type 'IA3'; a LORA is read; merge it with peft"),
        ({}, {"use_dora": True}, "adapter_config.json: use_dora True is not read; merge it with peft"),
        ({}, {"fan_in_fan_out": True}, "fan_in_fan_out True is not read"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the base's weights as well; merge it"),
        (pair("layers.0.q_proj", 5, 4), {"lora_alpha": "x"}, "lora_alpha is 'x'; a number within"),
        (pair("layers.0.q_proj", 5, 4), {"lora_alpha": 1e308}, r"lora_alpha is 1e\+308; a number within those of fp32"),
        ({}, {"r": 8}, "adapter_config.json: r is 8, but lora_A and lora_B of layers.0.q_proj have rank 3; take the"),
        ({}, {"rank_pattern": {"q_proj": 2}}, "r is 2, but lora_A and lora_B of layers.0.q_proj have rank 3"),
        ({}, {"alpha_pattern": [3]}, r"alpha_pattern is \[3\]; an object from names to numbers is needed"),
        (pair("layers.0.q_proj", 5, 4), {"alpha_pattern": {"(a|b)+": 1}}, r"alpha_pattern '\(a\|b\)\+' is not read"),
        (
            {},
            {"target_modules": ["k_proj", "0_proj"]},
            r"target_modules \['k_proj', '0_proj'\] leaves layers.0.q_proj out",
        ),
        ({}, {"target_modules": "k_proj"}, "target_modules 'k_proj' leaves layers.0.q_proj out, so that peft does not"),
        ({}, {"target_modules": "a\\q"}, r"target_modules 'a\\\\q' is no regular expression: bad escape"),
        ({}, {"alpha_pattern": {"a\\q": 1}}, "alpha_pattern .* is no regular expression: bad escape"),
        ({}, {"target_modules": []}, r"target_modules \[\] leaves layers.0.q_proj out"),
        ({}, {"target_modules": 5}, "adapter_config.json: target_modules is 5; a list of modules' names is needed"),
        (
            {},
            {"target_modules": ["q_proj"], "exclude_modules": ["0.q_proj"]},
            "exclude_modules .* leaves layers.0.q_pr",
        ),
        ({}, {"modules_to_save": ["layers"]}, r"modules_to_save \['layers'\] leaves layers.0.q_proj out"),
        (
            pair("model.layers.0.q_proj", 5, 4),
            {"target_modules": ["q_proj"], "layers_to_transform": [1, 2]},
            r"layers_to_transform \[1, 2\] leaves model.layers.0.q_proj out",
        ),
        (
            {},
            {"target_modules": ["q_proj"], "layers_to_transform": ["a"]},
            "is \\['a'\\]; numbers of layers are needed",
        ),
        (pair("layers.0.q_proj", 5, 6), {}, r"lora_A \[3, 6\] and lora_B \[5, 3\] do not fit model.layers.0.q_proj"),
        (pair("layers.9.q_proj", 5, 4), {}, "is for layers.9.q_proj.weight, which .*model.safetensors has not"),
        ({"layers.0.q_proj.lora_A.weight": numbers(RANK, 4)}, {}, "layers.0.q_proj has one of lora_A and lora_B"),
        (
            {"layers.0.q_proj.lora_magnitude_vector": numbers(5)},
            {},
            "lora_magnitude_vector is of a kind that is not read; merge",
        ),
    ],
)
def test_refusals(tensors: dict[str, Any], settings: dict[str, Any], message: str, base: Path) -> None:
    write_adapter(base, tensors or pair("layers.0.q_proj", 5, 4), **settings)
    with pytest.raises(CheckpointError, match=message):
        open_tensors(base).read("model.layers.0.q_proj.weight")


def test_the_adapters_tensors_are_missing(base: Path) -> None:
    (base / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(
        CheckpointError, match="adapter_config.json is there, but adapter_model.safetensors and .* miss"
    ):
        open_tensors(base)


def bert_adapter(folder: Path, base: Path, **settings: Any) -> dict[str, Any]:
    """An adapter of the tiny BERT's queries and words, saved as sentence-transformers does it -> its tensors."""
    parts = pair(QUERY, 32, 32)
    words = open_tensors(base).tensors[f"{WORD}.weight"].shape[0]
    parts |= {f"{WORD}.lora_embedding_A": numbers(RANK, words), f"{WORD}.lora_embedding_B": numbers(32, RANK)}
    write_adapter(folder, parts, **{"base_model_name_or_path": str(base), **settings})
    for entry in base.iterdir():
        if entry.name not in ("config.json", "model.safetensors"):
            (shutil.copytree if entry.is_dir() else shutil.copy)(entry, folder / entry.name)
    return parts


def merged(folder: Path, base: Path, parts: dict[str, Any]) -> Path:
    shutil.copytree(base, folder)
    weights = safetensors.load_file(folder / "model.safetensors")
    weights[f"{QUERY}.weight"] += 2 * parts[f"{QUERY}.lora_B.weight"] @ parts[f"{QUERY}.lora_A.weight"]
    weights[f"{WORD}.weight"] += 2 * (parts[f"{WORD}.lora_embedding_B"] @ parts[f"{WORD}.lora_embedding_A"]).T
    safetensors.save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("keeps", ["tokenizer", "nothing", "base"])
def test_an_adapter_is_served_as_its_merged_model(keeps: str, tiny_bert: Path, tmp_path: Path) -> None:
    """With its own tokenizer, with the base's, and beside the base's weights."""
    parts = bert_adapter(tmp_path / "adapter", tiny_bert)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt") if keeps == "nothing" else ():
        (tmp_path / "adapter" / name).unlink(missing_ok=True)
    for name in ("config.json", "model.safetensors") if keeps == "base" else ():
        shutil.copy(tiny_bert / name, tmp_path / "adapter" / name)
    texts = ["the weather is lovely today", "he drove to stadium", ""]
    with Model(str(tmp_path / "adapter"), backend="numpy") as ours:
        vectors = ours.embed(texts)
    with Model(str(merged(tmp_path / "merged", tiny_bert, parts)), backend="numpy") as one:
        assert np.abs(vectors - one.embed(texts)).max() <= 1e-5
    with Model(str(tiny_bert), backend="numpy") as plain:
        assert np.abs(vectors - plain.embed(texts)).max() > 1e-2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "base_model_name_or_path is None; the hub id or path of a model is needed"),
        (
            "/no/such/model",
            "its base model '/no/such/model' is not to be had: there is no folder '/no/such/model'; say",
        ),
        ("adapter", "its base model .*adapter is an adapter itself; merge that one with peft first"),
    ],
)
def test_a_base_that_is_not_to_be_had(name: str | None, message: str, tiny_bert: Path, tmp_path: Path) -> None:
    where = str(tmp_path / "adapter") if name == "adapter" else name
    bert_adapter(tmp_path / "adapter", tiny_bert, base_model_name_or_path=where)
    asked = EngineConfig(checkpoint_path=str(tmp_path / "adapter"))
    with pytest.raises(CheckpointError, match=f"/adapter_config.json: {message}"), resolved(asked):
        pass


def test_the_folder_is_named_and_left_as_it_was(tiny_bert: Path, tmp_path: Path) -> None:
    bert_adapter(tmp_path / "my-adapter", tiny_bert)
    before = sorted(tmp_path.rglob("*"))
    with resolved(EngineConfig(checkpoint_path=str(tmp_path / "my-adapter"))) as folder:
        assert folder.name == "my-adapter" and (folder / "config.json").is_file()
        assert sorted(tmp_path.rglob("*")) == before
    assert not folder.parent.exists()


@pytest.mark.parametrize("own", ["", "spm.model"])
def test_a_sentencepiece_file_is_a_tokenizer(own: str, tiny_bert: Path, tmp_path: Path) -> None:
    """The base's where the adapter has no tokenizer; else the adapter's, and of the base none."""
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    bert_adapter(tmp_path / "adapter", base)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / "adapter" / name).unlink(missing_ok=True)
    (base / "spm.model").write_bytes(b"base")
    if own:
        (tmp_path / "adapter" / own).write_bytes(b"adapter")
    with resolved(EngineConfig(checkpoint_path=str(tmp_path / "adapter"))) as folder:
        assert (folder / "spm.model").read_bytes() == (b"adapter" if own else b"base")
        assert (folder / "tokenizer.json").exists() == (not own)


LOADING = """
import os, signal, sys
from rtp_llm.checkpoint import resolved
from rtp_llm.config import EngineConfig
number = getattr(signal, sys.argv[2])
signal.signal(number, signal.SIG_DFL)  # a shell's background jobs ignore SIGQUIT
with resolved(EngineConfig(checkpoint_path=sys.argv[1])) as folder:
    print(folder.parent, flush=True)
    os.kill(os.getpid(), number)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGQUIT"])
def test_a_signal_while_loading_leaves_no_links(name: str, tiny_bert: Path, tmp_path: Path) -> None:
    bert_adapter(tmp_path / "adapter", tiny_bert)
    command = [sys.executable, "-c", LOADING, str(tmp_path / "adapter"), name]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == -getattr(signal, name), ended.stderr
    assert ended.stdout and not Path(ended.stdout.strip()).exists()


def failure(path: Path, **options: Any) -> str:
    """Of loading it, in one line that names no link."""
    with pytest.raises(CheckpointError) as failed:
        Model(str(path), backend="numpy", **options)
    assert "/rtp_llm_" not in failed.value.message
    return failed.value.message


def test_errors_name_the_files_of_the_adapter(tiny_bert: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    bert_adapter(adapter, tiny_bert, use_dora=True)
    assert failure(adapter).startswith(f"{adapter}/adapter_config.json: use_dora True")
    shutil.rmtree(adapter)
    parts = bert_adapter(adapter, tiny_bert, lora_alpha=3e38)
    assert failure(adapter).startswith(f"{adapter}/adapter_model.safetensors: base_model.model.")
    write_adapter(adapter, {**parts, "stray.weight": numbers(2)}, base_model_name_or_path=str(tiny_bert))
    assert f"1 unexpected: stray.weight (in {adapter}/adapter_model.safetensors)" in failure(adapter)
    parts[f"{QUERY}.lora_A.weight"][0, 0] = np.nan
    write_adapter(adapter, parts, base_model_name_or_path=str(tiny_bert))
    found = failure(adapter)
    assert found.startswith(f"{adapter}/adapter_model.safetensors: 1 of the") and "lora_A" in found


@pytest.mark.parametrize("keeps_base", [False, True])
def test_one_line_tells_of_it(
    keeps_base: bool, tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bert_adapter(tmp_path / "adapter", tiny_bert)
    for name in ("config.json", "model.safetensors") if keeps_base else ():
        shutil.copy(tiny_bert / name, tmp_path / "adapter" / name)
    with caplog.at_level(logging.INFO), Model(str(tmp_path / "adapter"), backend="numpy"):
        told = [record.getMessage() for record in caplog.records if "added to" in record.getMessage()]
    assert told == [f"{tmp_path / 'adapter'}: an adapter, added to 2 weights"]


def test_an_adapter_of_nothing(base: Path) -> None:
    write_adapter(base, {})
    with pytest.raises(CheckpointError, match="adapter_model.safetensors has no tensors; download it again, or remove"):
        open_tensors(base)
