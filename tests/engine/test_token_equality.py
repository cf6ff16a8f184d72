"""Tokenizer against transformers' AutoTokenizer: ten thousand strings for each real tokenizer, cut on either side."""

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Item, Params
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import CheckpointError
from tests.conftest import ASSETS
from tests.engine import tokenizer_folders
from tests.engine.token_texts import make_texts
from tests.engine.tokenizer_folders import BYTE_LEVEL_FILES, LAYOUTS, theirs

pytest.importorskip("transformers")

LIMIT = 32


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(ASSETS if ASSETS.is_dir() else None)


@pytest.fixture(scope="session", params=["minilm", *LAYOUTS])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with a real tokenizer, and transformers' tokenizer of it."""
    name = request.param
    if name == "minilm":
        folder: Path = request.getfixturevalue("minilm")
    else:
        folder = tokenizer_folders.make(name, request.getfixturevalue("assets"), tmp_path_factory.mktemp(name))
    return folder, theirs(folder)


def ids(items: Sequence[Item]) -> list[list[int]]:
    return [item.input_ids.tolist() for item in items]


def load(folder: Path, limit: int = LIMIT) -> Tokenizer:
    return _loaded(folder, limit)


@cache
def _loaded(folder: Path, limit: int) -> Tokenizer:
    """A real tokenizer, which takes a second, once; a default of its own would make two of one key."""
    return Tokenizer(folder, max_seq_len=limit)


def pairs_of(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(texts, [*texts[7:], *texts[:7]], strict=True)


def check(expected: list[list[int]], encode: Any, inputs: Sequence[Any]) -> None:
    """Ours equal theirs, input by input; one without any token, which ours refuses, is left out."""
    kept = [(value, row) for value, row in zip(inputs, expected, strict=True) if row]
    assert len(kept) > 0.8 * len(inputs)  # texts of control characters alone have none
    ours = ids(encode([value for value, _ in kept]))
    wrong = [value for (value, row), got in zip(kept, ours, strict=True) if row != got]
    assert not wrong, f"{len(wrong)} of {len(kept)}: {wrong[:3]!r:.500}"


@pytest.mark.parametrize("side", ["right", "left"])
def test_ids_equal_transformers(family: tuple[Path, Any], texts: list[str], side: Any) -> None:
    folder, theirs = family
    theirs.truncation_side = side
    texts = texts if side == "right" else texts[:2000]
    expected = theirs(texts, truncation=True, max_length=LIMIT, return_attention_mask=False)["input_ids"]
    check(expected, lambda kept: load(folder).encode(kept, Params(truncation_side=side)), texts)


@pytest.mark.parametrize("side", ["right", "left"])
def test_pairs_equal_transformers(family: tuple[Path, Any], texts: list[str], side: Any) -> None:
    folder, theirs = family
    theirs.truncation_side = side
    # transformers keeps every combination of the cut-off parts of a pair: two long texts must not be too long.
    pairs = [*pairs_of([text for text in texts if len(text) < 800][: 1500 if side == "right" else 500])]
    expected = theirs(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=LIMIT)
    check(expected["input_ids"], lambda kept: load(folder).encode(kept, Params(truncation_side=side)), pairs)
    kept = [place for place, row in enumerate(expected["input_ids"]) if row]
    items = load(folder).encode([pairs[place] for place in kept], Params(truncation_side=side))
    types = [np.zeros(item.num_tokens) if item.token_type_ids is None else item.token_type_ids for item in items]
    default = [[0] * len(row) for row in expected["input_ids"]]
    assert [row.tolist() for row in types] == [expected.get("token_type_ids", default)[place] for place in kept]


def test_without_special_tokens_equals_transformers(family: tuple[Path, Any], texts: list[str]) -> None:
    folder, theirs = family
    theirs.truncation_side = "right"
    expected = theirs(texts[:1000], truncation=True, max_length=LIMIT, add_special_tokens=False)["input_ids"]
    check(expected, lambda kept: load(folder).encode(kept, Params(add_special_tokens=False)), texts[:1000])


def test_long_texts_equal_transformers(family: tuple[Path, Any], texts: list[str]) -> None:
    folder, theirs = family
    theirs.truncation_side = "right"
    long = [" ".join(texts)[:100_000], "x" * 50_000, "word " * 20_000, "\u0301 " * 25_000 + "the end", "，。" * 20_000]
    expected = theirs(long, truncation=True, max_length=LIMIT)["input_ids"]
    check(expected, lambda kept: load(folder).encode(kept, Params()), long)


@pytest.mark.parametrize("side", ["right", "left"])
def test_spans_equal_transformers(family: tuple[Path, Any], texts: list[str], side: Any) -> None:
    """The characters of each token, in short texts and in those of which a part is tokenised."""
    folder, theirs = family
    theirs.truncation_side = side
    values = [*texts[:2000], " ".join(texts)[:100_000], "word " * 20_000, "，。" * 20_000, "İé e\u0301 ﬁ 🙂" * 2000]
    expected = theirs(
        values, truncation=True, max_length=LIMIT, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    kept = [place for place, row in enumerate(expected["input_ids"]) if row]
    params = Params(truncation_side=side, aggregation_strategy="none")
    items = load(folder).encode([values[place] for place in kept], params)
    for place, item in zip(kept, items, strict=True):
        offsets, special = expected["offset_mapping"][place], expected["special_tokens_mask"][place]
        own = [(-1, -1) if is_special else span for span, is_special in zip(offsets, special, strict=True)]
        assert item.spans is not None and [*map(tuple, item.spans.tolist())] == own, values[place][:100]
        assert item.input_ids.tolist() == expected["input_ids"][place]


@pytest.mark.parametrize("limit", [LIMIT, LIMIT + 1])
def test_long_pairs_equal_transformers(family: tuple[Path, Any], limit: int) -> None:
    folder, theirs = family
    theirs.truncation_side = "right"
    long, longer, mute = "internationalization " * 52, "straightforwardness " * 60, "\u0301 " * 520 + "the end"
    short = "a short one"
    pairs = [(long, short), (short, long), (long, longer), (longer, long), (mute, longer), (short, mute)]
    expected = theirs(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=limit)["input_ids"]
    check(expected, lambda kept: load(folder, limit).encode(kept, Params()), pairs)


def test_offsets_and_decode(family: tuple[Path, Any]) -> None:
    folder, theirs = family
    tokenizer = load(folder)
    tokens = tokenizer.tokens("the weather is lovely")
    assert [token.id for token in tokens] == theirs("the weather is lovely")["input_ids"]
    assert all((token.start is None) == token.special for token in tokens)
    assert tokenizer.decode([token.id for token in tokens]).strip() == "the weather is lovely"


MASK = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
END = {**MASK, "content": "<|endoftext|>", "lstrip": False}
START = {**END, "content": "<|im_start|>"}
ADDED = {"151643": {**END, "special": True}, "151644": {**START, "special": True}}
ENDS = {"add_eos_token": True, "add_bos_token": True, "bos_token": "<|im_start|>", "added_tokens_decoder": ADDED}
MAP = {"special_tokens_map.json": {"mask_token": MASK, "bos_token": "<s>"}}
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2, an end": ("qwen2", {"tokenizer_config.json": {"add_eos_token": True}}),
    "qwen2, both ends": ("qwen2", {"tokenizer_config.json": ENDS}),
    "qwen2, space": ("qwen2", {"tokenizer_config.json": {"add_prefix_space": True, "add_bos_token": True}}),
    "qwen2, added_tokens.json": ("qwen2", {"added_tokens.json": {"<|endoftext|>": 151643, "<|im_start|>": 151644}}),
    "roberta, nothing declared": ("roberta-base", {}),
    "roberta, map": ("roberta-base", MAP),
    "roberta, mask": ("roberta-base", {"tokenizer_config.json": {"mask_token": {**MASK, "__type": "AddedToken"}}}),
    "roberta, added": ("roberta-base", {"tokenizer_config.json": {"added_tokens_decoder": {"50264": MASK}}}),
}


def byte_level(source: str, folder: Path, assets: Path, files: dict[str, Any]) -> Path:
    """vocab.json and merges.txt, and what else is written beside them."""
    for name in BYTE_LEVEL_FILES[:2]:
        shutil.copy(assets / "tokenizers" / source / name, folder / name)
    for name, content in {"config.json": {"model_type": source.partition("-")[0]}, **files}.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("case", FILES)
def test_files_without_tokenizer_json_equal_transformers(case: str, assets: Path, tmp_path: Path) -> None:
    source, files = FILES[case]
    folder = byte_level(source, tmp_path, assets, files)
    tokenizer = theirs(folder)
    texts = ["x <mask> y", "<|endoftext|> a <|im_start|> b", "e\u0301 \u0301 \n don'T 12", ""]
    inputs: list[Any] = [*texts, *pairs_of([*texts, *"abcd"])]
    # In batches of one: given as an argument of its own, an empty second text would count as none.
    expected = [row for value in inputs for row in tokenizer([value])["input_ids"]]
    check([row[:LIMIT] for row in expected], lambda kept: load(folder).encode(kept, Params()), inputs)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"151650": END}, r"'<\|endoftext\|>' is declared with id 151650, but comes to stand at 151643"),
        (
            {"151643": "<|endoftext|>"},
            "tokenizer_config.json: added_tokens_decoder is .*; an object of tokens by their ids",
        ),
        ([END], "tokenizer_config.json: added_tokens_decoder is .*; an object of tokens by their ids"),
    ],
)
def test_added_tokens_that_cannot_be(added: Any, message: str, assets: Path, tmp_path: Path) -> None:
    byte_level("qwen2", tmp_path, assets, {"tokenizer_config.json": {"added_tokens_decoder": added}})
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)
