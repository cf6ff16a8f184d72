"""Files of a checkpoint that a clone without Git LFS left as pointers: the error names file, kind and way out."""

import json
from pathlib import Path

import pytest

from rtp_llm.checkpoint import find
from tests.test_invalid_checkpoints import error_of
from tests.test_invalid_checkpoints import folder as folder

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 90868376\n".encode()


def without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def as_class(folder: Path, tokenizer_class: str) -> None:
    """A folder without tokenizer.json, whose other file is read by the rules of this class."""
    without(folder, "tokenizer.json")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": tokenizer_class}))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json"]
)
def test_a_file_that_is_there(name: str, folder: Path) -> None:
    assert_told(folder, name)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.safetensors.index.json", "model-00001-of-00002.safetensors"]
)
def test_other_forms_of_weights(name: str, folder: Path) -> None:
    without(folder, "model.safetensors")
    if name.startswith("model-"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert_told(folder, name)


@pytest.mark.parametrize(
    ("tokenizer_class", "name", "beside"),
    [
        ("BertTokenizer", "vocab.txt", ()),
        ("RobertaTokenizer", "vocab.json", ("merges.txt",)),
        ("RobertaTokenizer", "merges.txt", ("vocab.json",)),
        ("XLMRobertaTokenizer", "sentencepiece.bpe.model", ()),
        ("DebertaV2Tokenizer", "spm.model", ()),
        ("T5Tokenizer", "spiece.model", ()),
    ],
)
def test_vocabularies(tokenizer_class: str, name: str, beside: tuple[str, ...], folder: Path) -> None:
    as_class(folder, tokenizer_class)
    for other in beside:
        (folder / other).write_text("{}")
    assert_told(folder, name)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_adapters(name: str, folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert_told(folder, name)


@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt"])
def test_heads_of_bge_m3(name: str, folder: Path) -> None:
    assert_told(folder, name)


def test_the_base_of_an_adapter(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").write_bytes(POINTER)
    assert error_of(adapter).startswith(f"{folder / 'model.safetensors'} is a Git LFS pointer")


def test_what_only_looks_like_one(tmp_path: Path) -> None:
    """Words of a vocabulary, or a file that is larger than a pointer may be."""
    (tmp_path / "vocab.txt").write_bytes(b"version\nhttps\n")
    (tmp_path / "merges.txt").write_bytes(POINTER + b"x" * 1024)
    (tmp_path / "empty.json").touch()
    assert all(find(tmp_path, name) == tmp_path / name for name in ("vocab.txt", "merges.txt", "empty.json"))


def assert_told(folder: Path, name: str) -> None:
    """The file is written over by a pointer, and told."""
    (folder / name).write_bytes(POINTER)
    line = error_of(folder)
    assert line.startswith(f"{folder / name} is a Git LFS pointer, not the file itself"), line
    assert "`git lfs pull`" in line and "hub id" in line
