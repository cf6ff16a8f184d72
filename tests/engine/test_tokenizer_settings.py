"""What tokenizer_config.json says over tokenizer.json, against transformers' AutoTokenizer, on a few words."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from rtp_llm.core import Params
from rtp_llm.engine.tokenizer import Tokenizer
from tests.conftest import WORDS

transformers = pytest.importorskip("transformers")

TEXTS = ["The weather", "so<mask> sunny <mask> today", "so  sunny", "sunnytoday sunny", ""]
PAIRS = [("The weather", "so sunny"), ("today", "")]
ENDS = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<mask>"], "mpnet": ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]}
PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
MASK = {"content": "<mask>", "special": True, **PLAIN}
OWN = "tokenizer_config.json"
CASES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "a space before the first word": ("roberta", {OWN: {"add_prefix_space": True}}),
    "no space before the first word": ("roberta-space", {OWN: {"add_prefix_space": False}}),
    "nothing of a space": ("roberta-space", {OWN: {"add_prefix_space": None}}),
    "mpnet, as it is written": ("mpnet", {OWN: {"do_lower_case": False}}),
    "a mask that takes the space": ("roberta", {OWN: {"added_tokens_decoder": {"4": {**MASK, "rstrip": True}}}}),
    "a mask that is a word": ("bert", {OWN: {"added_tokens_decoder": {"4": {**MASK, "single_word": True}}}}),
    "a word that is found anywhere": (
        "bert",
        {OWN: {"added_tokens_decoder": {"4": MASK, "11": {**MASK, "content": "sunny"}}}},
    ),
    "added_tokens.json": ("bert", {"added_tokens.json": {"sunny": 11, "<mask>": 4}}),
    "no token types": ("bert", {OWN: {"tokenizer_class": "TokenizersBackend"}}),
    "no token types from transformers 5 on": (
        "bert",
        {OWN: {"tokenizer_class": "PreTrainedTokenizerFast"}, "config.json": {"transformers_version": "5.1.0"}},
    ),
    "class in config.json": (
        "bert",
        {OWN: {"tokenizer_class": None}, "config.json": {"tokenizer_class": "DistilBertTokenizer"}},
    ),
}


def save(folder: Path, kind: str) -> None:
    if kind.startswith("roberta"):
        tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        vocab = {token: i for i, token in enumerate(tokens)}
        made = transformers.RobertaTokenizer(vocab=vocab, merges=[], add_prefix_space=kind == "roberta-space")
    else:
        vocab = {token: i for i, token in enumerate([*ENDS[kind], *WORDS, "The"])}
        name = {"bert": "BertTokenizer", "mpnet": "MPNetTokenizer"}[kind]
        made = getattr(transformers, name)(vocab=vocab, mask_token="<mask>")
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": kind.partition("-")[0]}))


def write(path: Path, settings: dict[str, Any]) -> None:
    """`settings` into a JSON file, which may not be there; None takes a key out."""
    changed = {**(json.loads(path.read_text()) if path.exists() else {}), **settings}
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, tmp_path: Path) -> None:
    kind, files = CASES[case]
    save(tmp_path, kind)
    for name, settings in files.items():
        write(tmp_path / name, settings)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer(tmp_path, max_seq_len=64).encode([*TEXTS, *PAIRS], Params())
    pairs = theirs([*map(list, PAIRS)])
    assert [item.input_ids.tolist() for item in ours] == [*theirs(TEXTS)["input_ids"], *pairs["input_ids"]]
    types = [item.token_type_ids for item in ours[len(TEXTS) :]]
    assert [None if row is None else row.tolist() for row in types] == pairs.get("token_type_ids", [None, None])


def test_special_tokens_with_flags_beside_vocabulary_files(tmp_path: Path) -> None:
    save(tmp_path, "roberta")
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    write(tmp_path / OWN, {"additional_special_tokens": [{"__type": "AddedToken", "content": "so", **PLAIN}]})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"]
    assert [item.input_ids.tolist() for item in Tokenizer(tmp_path, max_seq_len=64).encode(TEXTS, Params())] == theirs


def test_steps_that_transformers_5_would_not_take_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, "bert")
    with caplog.at_level("INFO"):
        Tokenizer(tmp_path, max_seq_len=64)
        assert not caplog.text
        write(tmp_path / "tokenizer.json", {"normalizer": {"type": "Lowercase"}})
        Tokenizer(tmp_path, max_seq_len=64)
    assert "read as it is (Lowercase, BertPreTokenizer); transformers 5 makes a BertTokenizer's own" in caplog.text
