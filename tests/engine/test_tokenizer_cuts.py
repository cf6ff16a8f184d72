"""Cutting a long text before it is tokenised never shows: part by part against the whole, on real tokenizers."""

import copy
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.core import Params
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.engine.tokenizer_cuts import Cuts, find_cuts

tokenizers = pytest.importorskip("tokenizers")
normalizers, pre_tokenizers = tokenizers.normalizers, tokenizers.pre_tokenizers

NAMES = (
    "bert-base-uncased", "bert-base-chinese", "roberta-base", "xlm-roberta", "qwen2", "qwen3", "albert", "deberta-v2",
    "deberta-v2 by punctuation", "deberta-v2 of transformers 4",
)  # fmt: skip
# What joins, splits, composes or hides at a border.
ALPHABET = [
    *" \t\n\r.,;:!?'\"-_()[]<>|/~^`$+=0123456789abcdefXYZ", "  ", "\r\n", "\n\n", "'s", "'Re", " '", "\u0301", "\u0338",
    "\u200b", "\u200d", "\ufeff", "\u00a0", "\u3000", "\u2028", "\x1c", "\x00", "é", "İ", "ſ", "ß", "ﬁ", "²", "½", "Ⅷ",
    "⑴", "\u0958", "\u093c", "क", "ि", "ส", "ว", "ั", "ع", "א", "й", "世", "界", "，", "。", "！", "か", "が", "\u3099",
    "한", "\u1112", "\u1161", "\u11ab", "🙂", "\U0001f1e9", "\u0600", "[SEP]", "[MASK]", "<mask>", "</s>",
    "<|im_start|>", "<|endoftext|>", "<|", "word", " word", "Word ", "x1y", "3.14",
]  # fmt: skip


@cache
def load(assets: Path, name: str) -> Tokenizer:
    """A real tokenizer; or XLM-RoBERTa's pieces behind another class's steps, as `tokenizer_pieces` has them."""
    if name.partition(" ")[0] not in ("albert", "deberta-v2"):
        return Tokenizer(assets / "tokenizers" / name, max_seq_len=24)
    tokenizer = copy.copy(load(assets, "xlm-roberta"))
    tokenizer._tokenizer = made = tokenizers.Tokenizer.from_str(library(assets, "xlm-roberta").to_str())
    charsmap, metaspace = made.normalizer, pre_tokenizers.Metaspace("▁", "always")
    blanks = normalizers.Replace(tokenizers.Regex(r"\s{2,}|[\n\r\t]"), " ")
    if name == "albert":
        quotes = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        plain = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
        made.normalizer = normalizers.Sequence([*quotes, *plain, charsmap])
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    elif name.endswith("4"):
        strip, spaces = normalizers.Strip(left=False, right=True), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
        made.normalizer = normalizers.Sequence([normalizers.Lowercase(), strip, charsmap, spaces])
        made.pre_tokenizer = pre_tokenizers.Sequence([metaspace])
    else:
        strip = normalizers.Strip(left=False, right=True)
        made.normalizer = normalizers.Sequence([normalizers.Lowercase(), blanks, normalizers.NFC(), strip])
        words = [pre_tokenizers.Punctuation("isolated")] if name.endswith("punctuation") else []
        made.pre_tokenizer = pre_tokenizers.Sequence([*words, metaspace])
    tokenizer.cuts = find_cuts(made)
    return tokenizer


def library(assets: Path, name: str) -> Any:
    return load(assets, name)._tokenizer


def cuts_of(tokenizer: Any) -> Cuts:
    cuts = find_cuts(tokenizer)
    assert cuts is not None
    return cuts


def ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def random_texts(seed: int, count: int, most: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(ALPHABET, k=chance.randint(1, most))) for _ in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_a_part_has_the_tokens_of_the_whole(name: str, assets: Path) -> None:
    tokenizer = library(assets, name)
    cuts, texts = cuts_of(tokenizer), random_texts(7, 3000, 40)
    wholes = ids(tokenizer, texts)
    lengths = [random.Random(i).randint(0, len(text)) for i, text in enumerate(texts)]
    heads = [cuts.head(text, length) for text, length in zip(texts, lengths, strict=True)]
    tails = [cuts.tail(text, length) for text, length in zip(texts, lengths, strict=True)]
    assert sum(len(head) < len(text) for head, text in zip(heads, texts, strict=True)) > 1000
    for text, whole, head, tail, head_ids, tail_ids in zip(
        texts, wholes, heads, tails, ids(tokenizer, heads), ids(tokenizer, tails), strict=True
    ):
        assert text.startswith(head) and whole[: len(head_ids)] == head_ids, (text, head)
        assert text.endswith(tail) and whole[len(whole) - len(tail_ids) :] == tail_ids, (text, tail)


@pytest.mark.parametrize("name", NAMES)
def test_no_added_token_is_cut(name: str, assets: Path) -> None:
    tokenizer = library(assets, name)
    cuts = cuts_of(tokenizer)
    for added in tokenizer.get_added_tokens_decoder().values():
        text = f"a b {added.content} c"
        for length in range(len(text)):
            head = cuts.head(text, length)
            assert added.content in head or head in ("a", "a ", "a b", "a b ", text)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_long_texts_equal_the_whole_cut_afterwards(name: str, side: Any, assets: Path) -> None:
    texts = [*random_texts(11, 20, 2500), "ab\n" * 900, "你好。" * 900, "a, b" * 900, "x" * 3000]
    tokenizer = load(assets, name)
    whole = copy.copy(tokenizer)
    whole.cuts = None
    batches: tuple[list[Any], ...] = (
        texts,
        [*zip(texts, reversed(texts), strict=True)],
        [("a b", text) for text in texts],
    )
    params = Params(truncation_side=side)
    for batch in batches:
        pairs = zip(tokenizer.encode(batch, params), whole.encode(batch, params), strict=True)
        assert all(mine.input_ids.tolist() == theirs.input_ids.tolist() for mine, theirs in pairs)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: setattr(t, "normalizer", tokenizers.normalizers.Replace(" ", "x")),
        lambda t: setattr(t, "normalizer", tokenizers.normalizers.Replace(tokenizers.Regex("a.*"), "x")),
        lambda t: setattr(t, "normalizer", tokenizers.normalizers.Strip()),
        lambda t: setattr(t, "pre_tokenizer", tokenizers.pre_tokenizers.Metaspace(split=False)),
        lambda t: t.add_tokens([tokenizers.AddedToken("a b", normalized=True)]),
        lambda t: t.add_tokens([tokenizers.AddedToken("ab", single_word=True)]),
    ],
)
def test_an_unknown_make_is_never_cut(spoil: Any) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    assert find_cuts(tokenizer) is not None
    spoil(tokenizer)
    assert find_cuts(tokenizer) is None
