"""Folders with real tokenizers, in the layouts that checkpoints have them."""

import json
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.conftest import WORDS

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
BYTE_LEVEL_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")


@dataclass(frozen=True)
class Layout:
    """`files` of the source folder, or all; `settings` go into tokenizer_config.json."""

    source: str
    model_type: str
    files: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    ends: bool = False


LAYOUTS = {
    "bert-base-uncased": Layout("bert-base-uncased", "bert"),
    "bert-base-chinese": Layout("bert-base-chinese", "bert"),
    "roberta-base": Layout("roberta-base", "roberta"),
    "roberta-files": Layout("roberta-base", "roberta", BYTE_LEVEL_FILES),
    "xlm-roberta": Layout("xlm-roberta", "xlm-roberta"),
    "qwen2-eos": Layout("qwen2", "qwen2", ("tokenizer.json", "tokenizer_config.json"), {"add_eos_token": True}),
    "qwen2-files": Layout("qwen2", "qwen2", BYTE_LEVEL_FILES, {"add_eos_token": True}),
    "qwen3-embedding": Layout("qwen3", "qwen3", ends=True),
}


def make(name: str, assets: Path, folder: Path) -> Path:
    """The folder of one of LAYOUTS, with a config.json that names its architecture."""
    layout = LAYOUTS[name]
    for file in (assets / "tokenizers" / layout.source).iterdir():
        if not layout.files or file.name in layout.files:
            shutil.copy(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps({"model_type": layout.model_type}))
    if layout.settings:
        set_keys(folder / "tokenizer_config.json", **layout.settings)
    if layout.ends:
        append_end_of_text(folder / "tokenizer.json")
    return folder


@cache
def shortened(path: Path, num_tokens: int = 20_000) -> str:
    """tokenizer.json of a byte-level BPE: its first tokens and merges, "assistant", and added tokens, by their own ids.

    For tests of what stands around texts, for which each reader of the whole file would take half a second a test.
    """
    content = json.loads(path.read_text())
    model = content["model"]
    vocab = {token: number for token, number in model["vocab"].items() if number < num_tokens or token == "assistant"}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    model["merges"] = [pair for pair in pairs if all(part in vocab for part in (*pair, "".join(pair)))]
    # Of a vocabulary with holes, an added token keeps its id only where the model has it too.
    model["vocab"] = {**vocab, **{token["content"]: token["id"] for token in content["added_tokens"]}}
    return json.dumps(content, ensure_ascii=False)


def theirs(folder: Path) -> Any:
    """transformers' tokenizer of a folder, under all of tokenizer_config.json."""
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    if settings.exists() and json.loads(settings.read_text()).get("add_eos_token"):
        tokenizer.add_eos_token = True  # transformers 5 does not read the key where there is a tokenizer.json
    return tokenizer


def set_keys(path: Path, **values: Any) -> None:
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def append_end_of_text(path: Path) -> None:
    """The post-processor of Qwen3-Embedding."""
    token = "<|endoftext|>"
    first = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": token, "type_id": 1}}]
    template = {
        "type": "TemplateProcessing", "single": first, "pair": first + second,
        "special_tokens": {token: {"id": token, "ids": [151643], "tokens": [token]}},
    }  # fmt: skip
    byte_level = json.loads(path.read_text())["post_processor"]
    set_keys(path, post_processor={"type": "Sequence", "processors": [byte_level, template]})
