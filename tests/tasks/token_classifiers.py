"""Random token classifiers with real tokenizers, and transformers' pipeline of the same files."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine import tokenizer_folders
from tests.models.oracle import add_noise

LIMIT = 40
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "MISC", 6: "E-A-B"}
STRATEGIES = ("none", "simple", "first", "average", "max")
# A layout of tokenizer_folders -> transformers' class, and how many positions stand before the first token's.
KINDS = {
    "bert-base-uncased": ("Bert", 0),
    "bert-base-chinese": ("Bert", 0),
    "roberta-base": ("Roberta", 2),
    "roberta-files": ("Roberta", 2),
    "xlm-roberta": ("XLMRoberta", 2),
    "qwen2-eos": ("Qwen2", 0),
}
SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
COMMON = {"initializer_range": 0.3, "id2label": LABELS, "label2id": {label: i for i, label in LABELS.items()}}


def save(layout: str, assets: Path, folder: Path) -> Any:
    """A checkpoint whose tokens have labels of all kinds -> transformers' pipeline of it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer_folders.make(layout, assets, folder)
    theirs = tokenizer_folders.theirs(folder)
    theirs.model_max_length = LIMIT
    stem, lead = KINDS[layout]
    own: dict[str, Any] = {"type_vocab_size": 1, "pad_token_id": 1} if lead else {}
    if stem == "Qwen2":
        own = {"num_key_value_heads": 3, "head_dim": 8}
    torch.manual_seed(0)
    config = getattr(transformers, f"{stem}Config")(
        **SHAPE, **COMMON, **own, vocab_size=len(theirs), max_position_embeddings=LIMIT + lead
    )
    model = getattr(transformers, f"{stem}ForTokenClassification")(config).eval()
    add_noise(model)
    model.save_pretrained(folder)
    return transformers.pipeline("token-classification", model=model, tokenizer=theirs, device="cpu")


def check_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], case: str) -> None:
    """The same entities, their scores at most 1e-5 apart."""
    assert [list(entity) for entity in ours] == [list(entity) for entity in theirs], case
    for left, right in zip(ours, theirs, strict=True):
        assert abs(left.pop("score") - float(right["score"])) <= 1e-5, case
        assert left == {key: value for key, value in right.items() if key != "score"}, case
