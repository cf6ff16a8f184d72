"""A sentencepiece file alone, against transformers' AutoTokenizer of the same folder."""

import base64
import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import tokenizers

from rtp_llm.core import Params
from rtp_llm.engine import tokenizer_files
from rtp_llm.engine.sentencepiece_file import read_pieces
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import CheckpointError
from tests.conftest import WORDS
from tests.engine.test_token_equality import check, pairs_of
from tests.engine.token_texts import NASTY, make_texts

pytest.importorskip("transformers")
sentencepiece = pytest.importorskip(
    "sentencepiece", reason="the test extra brings sentencepiece, which trains the files"
)

from transformers import AutoTokenizer  # noqa: E402

LIMIT = 16
ENGLISH = " ".join(WORDS)
CORPUS = [
    ENGLISH,
    ENGLISH.title(),
    'In 1998, 2,500 (so-called) cafés: naïve; "déjà vu"!',
    "日本語 漢字 한국어 שלום привет γειά",
]
TEXTS = [
    *NASTY, ENGLISH, ENGLISH.upper(), "in 1998, or 5, 25,", "``quoted'' text", "  lead", "trail  ", "a  b   c",
    "a\nb\n\nc\td\r\ne", "x <mask>, y", "x  [MASK] y[MASK]", "<extra_id_0> a <extra_id_99>", "<unk> [UNK] <pad>",
    "<s>NOTUSED", "(a)-(b)", "▁a ▁ b", "\u3000wide\u3000", "nbsp\u00a0\u00a0x", "soft\u00adhyphen", "so" * 40,
    "e\u0301E\u0301 Å Å", "ﬁne ①②", "İSTANBUL ẞ", " ".join([*NASTY, ENGLISH, "x  <mask> "]) * 9,
]  # fmt: skip
MASK = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": True, "single_word": False}
SQUARE = {**MASK, "content": "[MASK]", "normalized": False}
NEW = {**SQUARE, "content": "<new>", "lstrip": False}
BERT_IDS = {
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "pad_piece": "[PAD]",
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
}
ALBERT = {
    "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
    "user_defined_symbols": ["(", ")", "-"],
}  # fmt: skip
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {  # -> class, file, how it is trained
    "xlm-roberta": ("XLMRobertaTokenizer", "sentencepiece.bpe.model", {}),
    "camembert": ("CamembertTokenizer", "sentencepiece.bpe.model", {}),
    "albert": ("AlbertTokenizer", "spiece.model", ALBERT),
    "t5": ("T5Tokenizer", "spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
    "mt5": ("T5Tokenizer", "spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
    "deberta-v2": ("DebertaV2Tokenizer", "spm.model", {**BERT_IDS, "unk_piece": "[UNK]"}),
}
OWN, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# Kind, what is trained otherwise, and files; `size` in one stands for the id behind the last.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{kind: (kind, {}, {}) for kind in KINDS},
    **{f"{kind}, characters as they are": (kind, {"normalization_rule_name": "identity"}, {}) for kind in KINDS},
    **{
        f"{kind}, class alone": (kind, {}, {OWN: {"tokenizer_class": KINDS[kind][0]}, "config.json": {}})
        for kind in KINDS
    },
    **{f"{kind}, without a space": (kind, {}, {OWN: {"add_prefix_space": False}}) for kind in KINDS},
    "xlm-roberta, lower case": ("xlm-roberta", {"normalization_rule_name": "nmt_nfkc_cf"}, {}),
    "xlm-roberta, map": ("xlm-roberta", {}, {MAP: {"mask_token": MASK, "bos_token": "<s>"}}),
    "xlm-roberta, other tokens": ("xlm-roberta", {}, {OWN: {"mask_token": "<new>", "pad_token": "<none>"}}),
    "xlm-roberta, added": ("xlm-roberta", {}, {OWN: {"added_tokens_decoder": {"size": NEW}, "mask_token": "<mask>"}}),
    "xlm-roberta, listed": ("xlm-roberta", {}, {OWN: {"additional_special_tokens": ["<new>", "so"]}}),
    "xlm-roberta, named": ("xlm-roberta", {}, {OWN: {"extra_special_tokens": {"new_token": "<new>"}}}),
    "xlm-roberta, whole and its own": (
        "xlm-roberta",
        {"user_defined_symbols": ["sunny"], "control_symbols": ["<c>"]},
        {},
    ),
    "camembert, map": ("camembert", {}, {MAP: {"mask_token": {**MASK, "lstrip": False}}}),
    "camembert, its own": ("camembert", {"user_defined_symbols": ["sunny", "<mask>"]}, {}),
    "albert, cased": ("albert", {}, {OWN: {"do_lower_case": False}}),
    "albert, accents": ("albert", {}, {OWN: {"keep_accents": True, "do_lower_case": None}}),
    "albert, mask": ("albert", {}, {MAP: {"mask_token": SQUARE}}),
    "albert, listed": ("albert", {}, {OWN: {"additional_special_tokens": []}}),
    "albert, other ends": (
        "albert",
        {"control_symbols": ["<b>", "<e>"]},
        {OWN: {"cls_token": "<b>", "sep_token": "<e>"}},
    ),
    "t5, some ids": ("t5", {}, {OWN: {"extra_ids": 5}}),
    "mt5, no ids": ("mt5", {}, {OWN: {"extra_ids": 0, "additional_special_tokens": None}}),
    "t5, listed": ("t5", {}, {OWN: {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)]}}),
    "t5, mapped": (
        "t5",
        {},
        {MAP: {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)], "eos_token": "</s>"}},
    ),
    "t5, a start": ("t5", {}, {OWN: {"bos_token": "<new>"}}),
    "deberta-v2, lower case": ("deberta-v2", {}, {OWN: {"do_lower_case": True}}),
    "deberta-v2, punctuation": ("deberta-v2", {}, {OWN: {"split_by_punct": True, "vocab_type": "spm"}}),
    "deberta-v2, mask": ("deberta-v2", {"user_defined_symbols": ["[MASK]"]}, {}),
    "deberta-v2, added": ("deberta-v2", {}, {ADDED: {"[MASK]": "size"}, MAP: {"mask_token": "[MASK]"}}),
    "deberta-v2, map": ("deberta-v2", {}, {MAP: {"mask_token": SQUARE}}),
}


@cache
def trained(settings: str) -> bytes:
    """A small sentencepiece model, under the trainer's options as JSON."""
    options = {"model_type": "unigram", "vocab_size": 400, "hard_vocab_limit": False, **json.loads(settings)}
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 30), model_writer=written, minloglevel=2, **options
    )
    return written.getvalue()


def save(folder: Path, kind: str, options: dict[str, Any], files: dict[str, Any]) -> Path:
    _, file, own = KINDS[kind]
    model = trained(json.dumps({**own, **options}))
    (folder / file).write_bytes(model)
    num_pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    size = num_pieces + {"xlm-roberta": 2, "camembert": 5, "deberta-v2": 0}.get(kind, 0)
    for name, content in {"config.json": {"model_type": kind}, **files}.items():
        (folder / name).write_text(json.dumps(content).replace('"size"', str(size) if name == ADDED else f'"{size}"'))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, tmp_path: Path) -> None:
    kind, options, files = CASES[case]
    theirs: Any = AutoTokenizer.from_pretrained(save(tmp_path, kind, options, files))
    assert type(theirs).__name__ == KINDS[kind][0]
    tokenizer = Tokenizer(tmp_path, max_seq_len=LIMIT)
    texts, pairs = [*TEXTS, "<new> a", "<c> sunny<c>"], [*pairs_of([text for text in TEXTS if len(text) < 99])]
    check(
        theirs(texts, truncation=True, max_length=LIMIT)["input_ids"],
        lambda kept: tokenizer.encode(kept, Params()),
        texts,
    )
    expected = theirs([*map(list, pairs)], truncation=True, max_length=LIMIT)["input_ids"]
    check(expected, lambda kept: tokenizer.encode(kept, Params()), pairs)
    bare = theirs(texts, add_special_tokens=False, truncation=True, max_length=LIMIT)["input_ids"]
    check(bare, lambda kept: tokenizer.encode(kept, Params(add_special_tokens=False)), texts)


@pytest.mark.parametrize("case", CASES)
def test_tokens_equal_transformers(case: str, tmp_path: Path) -> None:
    """All tokens by their ids, how added ones are found, token types and roles."""
    theirs: Any = AutoTokenizer.from_pretrained(save(tmp_path, *CASES[case]))
    ours, config = tokenizer_files.load(tmp_path)
    assert ours.get_vocab() == theirs.get_vocab()
    assert {i: repr(token) for i, token in ours.get_added_tokens_decoder().items()} == {
        i: repr(token) for i, token in theirs.added_tokens_decoder.items()
    }
    pair = ours.encode(ENGLISH, "so sunny")
    assert pair.type_ids == theirs._tokenizer.encode(ENGLISH, "so sunny").type_ids
    roles = tokenizer_files.special_ids(ours, config)
    assert roles == {role: theirs.convert_tokens_to_ids(str(token)) for role, token in roles_of(theirs)}
    assert ours.decode(pair.ids) == theirs.decode(pair.ids, skip_special_tokens=True)


def roles_of(theirs: Any) -> Iterator[tuple[str, Any]]:
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        if getattr(theirs, f"{role}_token") is not None:
            yield role, getattr(theirs, f"{role}_token")


def message(number: int, content: bytes) -> bytes:
    """A field of protobuf that holds bytes, fewer than 128."""
    return bytes([number << 3 | 2, len(content)]) + content


PIECE = message(1, message(1, b"a") + b"\x15" + bytes(4))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has no pieces"),
        (b"\n", "it ends inside a number"),
        (b"version of something else\n", "a field is of wire type 6"),
        (PIECE[:-1], "a field has no number, or ends behind the end"),
        (b"\x02\x01a", "a field has no number, or ends behind the end"),
        (b"\x0a" + b"\xff" * 9 + b"\x01", "a field has no number, or ends behind the end"),
        (b"\x0a" + b"\xff" * 11, "a number has more than ten bytes"),
        (message(1, b"\x15" + bytes(4)), "a piece is '' with a score of 0.0"),
        (message(1, message(1, b"a") + b"\x15\0\0\xc0\x7f"), "a piece is 'a' with a score of nan"),
        (message(1, message(1, b"\xff")), "'utf-8' codec can't decode"),
        (PIECE, "it has not both of its settings"),
        (PIECE + message(2, b""), "it has not both of its settings"),
        (PIECE + message(3, message(2, b"abc")), "its charsmap of 3 bytes cannot have a trie of 6,513,249"),
        (PIECE + message(3, message(2, b"\x04\0\0\0\0\x04\0\0")), "its charsmap leads out of itself"),
    ],
)
def test_files_that_are_damaged(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    (tmp_path / "spm.model").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=f"spm.model is not a sentencepiece file: .*{reason}.*; download it again"
    ):
        Tokenizer(tmp_path, max_seq_len=LIMIT)


def test_of_a_damaged_file_nothing_else_comes_than_an_error(tmp_path: Path) -> None:
    """Cut anywhere, or with bits turned over, in its charsmap too: an error, or a tokenizer that works."""
    save(tmp_path, "albert", {}, {})
    path, random, refused = tmp_path / "spiece.model", Random(0), 0
    whole = path.read_bytes()
    start = whole.index(read_pieces(path).charsmap)
    for number in range(200):
        damaged = bytearray(whole)
        for _ in range(random.choice([1, 3, 30])):
            damaged[random.randrange(start if number % 2 else 0, len(whole))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged[: random.randrange(len(whole))] if number % 4 == 0 else damaged)
        try:
            tokenizer = Tokenizer(tmp_path, max_seq_len=LIMIT)
        except CheckpointError:
            refused += 1
        else:
            tokenizer.encode(["".join(map(chr, range(32, 0x3000, 7))), "a b"], Params())
    assert 50 < refused < 200


@pytest.mark.parametrize(
    ("kind", "file", "settings", "options", "reason"),
    [
        (
            "llama",
            "tokenizer.model",
            {},
            {"model_type": "bpe"},
            "tokenizer.model alone is not read for a LlamaTokenizer",
        ),
        ("xlm-roberta", "spiece.model", {}, {}, "spiece.model alone is not read for a XLMRobertaTokenizer"),
        ("t5", "spiece.model", {}, {"model_type": "bpe"}, "pieces are not of the Unigram kind, which alone is read"),
        (
            "t5",
            "spiece.model",
            {"tokenizer_class": "FooTokenizer"},
            {},
            "not read for a FooTokenizer, a tokenizer.json",
        ),
        ("t5", "spiece.model", {"extra_ids": -1}, {}, "extra_ids is -1; a whole number from 0 to 65,536 is needed"),
        ("t5", "spiece.model", {"eos_token": ""}, {}, "'' .*cannot stand around a text"),
        (
            "t5",
            "spiece.model",
            {"added_tokens_decoder": {"9": NEW}},
            {},
            "'<new>' is declared with id 9, .* spiece.model",
        ),
    ],
)
def test_what_is_not_read(
    kind: str, file: str, settings: dict[str, Any], options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / OWN).write_text(json.dumps(settings))
    (tmp_path / file).write_bytes(trained(json.dumps(options)))
    with pytest.raises(CheckpointError, match=reason) as error:
        Tokenizer(tmp_path, max_seq_len=LIMIT)
    assert "read" not in reason or "AutoTokenizer.from_pretrained" in str(error.value)


def test_mt5_has_t5s_tokenizer(tmp_path: Path) -> None:
    """transformers 5 has its name no more, with which older ones saved it."""
    save(tmp_path, "t5", {}, {})
    expected, _ = tokenizer_files.load(tmp_path)
    (tmp_path / OWN).write_text('{"tokenizer_class": "MT5TokenizerFast"}')
    ours, _ = tokenizer_files.load(tmp_path)
    assert ours.to_str() == expected.to_str()


def test_of_a_wordpiece_class_the_sentencepiece_file_is_nothing(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text((tiny / "vocab.txt").read_text())
    (tmp_path / "spiece.model").write_bytes(b"damaged")
    assert Tokenizer(tmp_path, max_seq_len=LIMIT).special_ids["cls"] == 2


def test_xlm_roberta_from_pieces_equals_its_tokenizer_json(assets: Path, tmp_path: Path) -> None:
    """The whole vocabulary of XLM-RoBERTa, as its own file has it, on paragraphs of four languages."""
    proto: Any = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    source = assets / "tokenizers/xlm-roberta/tokenizer.json"
    content = json.loads(source.read_text())
    model = proto.ModelProto()
    first = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    model.pieces.extend(proto.ModelProto.SentencePiece(piece=text, score=0, type=kind) for text, kind in first)
    for text, score in content["model"]["vocab"][4:-1]:
        model.pieces.add(piece=text, score=score)
    model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    model.normalizer_spec.precompiled_charsmap = base64.b64decode(content["normalizer"]["precompiled_charsmap"])
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    ours, _ = tokenizer_files.load(tmp_path)
    # That file has five digits of each score, which decide between equal ways; a sentencepiece file has 24 bits.
    content["model"]["vocab"] = [[text, float(np.float32(score))] for text, score in content["model"]["vocab"]]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    texts = make_texts(assets, 3000)
    own, expected = ours.encode_batch_fast(texts), theirs.encode_batch_fast(texts)
    assert [row.ids for row in own] == [row.ids for row in expected]
