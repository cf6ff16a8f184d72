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
ENDS = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<mask>"], "mpnet": ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]}
MASK = {
    "content": "<mask>",
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
    "special": True,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a space before the first word": ("roberta", {"add_prefix_space": True}),
    "no space before the first word": ("roberta-space", {"add_prefix_space": False}),
    "nothing of a space": ("roberta-space", {"add_prefix_space": None}),
    "mpnet, as it is written": ("mpnet", {"do_lower_case": False}),
    "a mask that takes the space": ("bert", {"added_tokens_decoder": {"4": {**MASK, "rstrip": True}}}),
    "a mask that is a word": ("bert", {"added_tokens_decoder": {"4": {**MASK, "single_word": True}}}),
    "a word that is found anywhere": (
        "bert",
        {"added_tokens_decoder": {"4": MASK, "11": {**MASK, "content": "sunny"}}},
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


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, tmp_path: Path) -> None:
    kind, settings = CASES[case]
    save(tmp_path, kind)
    path = tmp_path / "tokenizer_config.json"
    changed = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"]
    ours = Tokenizer(tmp_path, max_seq_len=64).encode(TEXTS, Params())
    assert [item.input_ids.tolist() for item in ours] == expected
