"""Tokenizer's own rules on limits, prompts, ids, files. Its ids are compared in test_token_equality."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from rtp_llm.core import Input, Item, Params
from rtp_llm.engine import tokenizer_files
from rtp_llm.engine.shortening import Side
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.engine.tokenizer_files import num_ids
from rtp_llm.engine.truncation import longest_first
from rtp_llm.errors import CheckpointError, ConfigError, InputTooLarge, InvalidRequest
from tests.conftest import WORDS
from tests.engine.tokenizer_folders import VOCAB, append_end_of_text, set_keys

LIMIT = 32


def ids(items: Sequence[Item]) -> list[list[int]]:
    return [item.input_ids.tolist() for item in items]


def encode(folder: Path, inputs: Sequence[Input], params: Params | None = None, **settings: Any) -> list[Item]:
    return Tokenizer(folder, **{"max_seq_len": LIMIT, **settings}).encode(inputs, params or Params())


def test_a_megabyte(tiny: Path) -> None:
    long = "the weather " * 90_000
    items = encode(tiny, [long, ("a", long), (long[:150_000], long[:200_000])])
    assert [item.num_tokens for item in items] == [LIMIT] * 3 and all(item.truncated for item in items)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x" * 200_001, "input 0 has 200001 characters without a known place for a cut, the limit for that is 200000"),
        (("the weather " * 17_000,) * 2, "input 0 has 204000 characters beside another long text"),
        (" " * 200_001 + "the weather", "input 0 has too few tokens in 200000 characters"),
    ],
)
def test_what_is_tokenised_at_a_time_is_bounded(tiny: Path, value: Any, message: str) -> None:
    with pytest.raises(InputTooLarge, match=message) as caught:
        encode(tiny, [value])
    assert caught.value.at("texts[0]", "").status == caught.value.status == 413


def test_long_texts_up_to_the_bound(tiny: Path) -> None:
    values = ["x" * 200_000, " " * 190_000 + "the weather " * 20_000, "x" * 150_000 + " the weather" * 9_000]
    assert [item.num_tokens for item in encode(tiny, values)] == [3, LIMIT, LIMIT]


@pytest.mark.parametrize(("source", "flag"), [("qwen2", True), ("qwen3", False), ("qwen3", True)])
def test_qwen_ends_with_its_end_of_text_even_when_cut(source: str, flag: bool, assets: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(assets / "tokenizers" / source / name, tmp_path / name)
    # Where tokenizer.json appends a token, the eos_token, <|im_end|> of Qwen3, is not appended as well.
    set_keys(tmp_path / "tokenizer_config.json", add_eos_token=flag, add_bos_token=False)
    if source == "qwen3":
        append_end_of_text(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path, max_seq_len=LIMIT)
    for side in get_args(Side):
        inputs: list[Input] = ["a", "a " * 100, ("a " * 100, "b")]
        short, long, pair = tokenizer.encode(inputs, Params(truncation_side=side))
        assert short.input_ids.tolist() == [64, 151643]
        assert long.num_tokens == pair.num_tokens == LIMIT and long.truncated
        assert long.input_ids[-1] == pair.input_ids[-1] == 151643 and 151643 not in long.input_ids[:-1]


def test_files_on_which_the_library_panics(tmp_path: Path) -> None:
    """A merge whose result is no word; found by fuzzing."""
    model = {"type": "BPE", "vocab": {"t": 0, "h": 1}, "merges": ["t h"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(CheckpointError, match="its tokenizer cannot be used: "):
        Tokenizer(tmp_path, max_seq_len=LIMIT)


def test_sentence_transformers_settings(tiny_bert: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(tiny_bert), device="cpu")
    model.max_seq_length = LIMIT
    for prompt in ("query : ", "passage", "query [SEP]", "the " * 50):
        theirs = model.preprocess(["the weather  "], prompt=prompt)
        (item,) = encode(tiny_bert, ["the weather  "], Params(prompt=prompt))
        assert item.input_ids.tolist() == theirs["input_ids"][0].tolist()
        assert item.prompt_length == theirs["prompt_length"]


@pytest.mark.parametrize("lower", [True, False])
def test_do_lower_case_equals_sentence_transformers(tiny_bert: Path, tmp_path: Path, lower: bool) -> None:
    models = pytest.importorskip("sentence_transformers.models")
    shutil.copytree(tiny_bert, tmp_path / "cased")
    config = json.loads((tmp_path / "cased/tokenizer_config.json").read_text())
    (tmp_path / "cased/tokenizer_config.json").write_text(json.dumps({**config, "do_lower_case": False}))
    theirs = models.Transformer(str(tmp_path / "cased"), max_seq_length=LIMIT, do_lower_case=lower)
    text = "The WEATHER is İlovely [SEP] [sep]"
    expected = theirs.tokenize([text])["input_ids"][0].tolist()
    assert ids(encode(tmp_path / "cased", [text], do_lower_case=lower)) == [expected]


@given(st.integers(0, 70), st.integers(0, 70), st.integers(1, 60))
def test_longest_first_keeps_what_fits(first: int, second: int, room: int) -> None:
    kept = longest_first(first, second, room)
    assert sum(kept) == min(room, first + second)
    assert kept[0] <= first and kept[1] <= second


@pytest.mark.parametrize("room", [3, 4, 7, 8])
def test_longest_first_equals_the_library(tiny: Path, room: int) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    reference = tokenizers.BertWordPieceTokenizer({token: i for i, token in enumerate(VOCAB)})
    reference.enable_truncation(room + 3)
    pairs = [(" ".join("a" * i), " ".join("b" * j)) for i in range(12) for j in range(12)]
    expected = [encoding.ids for encoding in reference.encode_batch(pairs)]
    assert ids(encode(tiny, pairs, max_seq_len=room + 3)) == expected


def test_the_limit_of_tokenizer_json_is_overridden(minilm: Path) -> None:
    item, padded = encode(minilm, ["word " * 400, "word"], max_seq_len=256)
    assert item.num_tokens == 256 and item.truncated and item.input_ids[-1] == 102
    assert padded.num_tokens == 3 and not padded.truncated


@pytest.mark.parametrize("value", ["a " * 40, ("a " * 20, "b " * 20), [7] * 33])
def test_truncate_false_is_an_error(tiny: Path, value: Any) -> None:
    with pytest.raises(
        InvalidRequest, match=r"input 1 .* the limit is 32; shorten or split (it|one of them), or set truncate"
    ):
        encode(tiny, ["a", value], Params(truncate=False))


@pytest.mark.parametrize("value", ["a " * 30, [7] * 32])
def test_at_the_limit_nothing_is_cut(tiny: Path, value: Any) -> None:
    (item,) = encode(tiny, [value], Params(truncate=False))
    assert item.num_tokens == LIMIT and not item.truncated


def test_token_ids_are_taken_as_they_are(tiny: Path) -> None:
    params = Params(prompt="query : ")
    whole, right = encode(tiny, [[7, 0, 9], [*range(20), *range(20)]], params)
    (left,) = encode(tiny, [[*range(20), *range(20)]], replace(params, truncation_side="left"))
    assert whole.input_ids.tolist() == [7, 0, 9] and whole.prompt_length == 0
    assert right.input_ids.tolist() == [*range(20), *range(12)] and right.truncated
    assert left.input_ids.tolist() == [*range(8, 20), *range(20)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "input 1 is an empty list"),
        ([1, 28], "token id 28 is out of this model's vocabulary of 28; .*check_embedding_ctx_length=False"),
        ([-1], "token id -1"),
        ([2**70], "token id 1180591620717411303424"),
        ([1.5], "1.5 is not a token id"),
        ([True], "True is not a token id"),
        (["a", "b"], "'a' is not a token id"),
        ([[1]], "is not a token id"),
        (3, "input 1 is a int"),
        (None, "input 1 is a NoneType"),
        (("a", "b", "c"), "input 1 is a tuple"),
        (("a", 1), "input 1 is a tuple"),
        ("a\ud800b", r"input 1 is not valid Unicode: a lone surrogate, '\\ud800', at character 1"),
        (("a", "\udfff"), "input 1 is not valid Unicode"),
    ],
)
def test_bad_input_is_named(tiny: Path, value: Any, message: str) -> None:
    assert len(VOCAB) == 28
    with pytest.raises(InvalidRequest, match=message):
        encode(tiny, ["a", value])


def test_no_token_at_all_is_an_error(tiny: Path) -> None:
    (item,) = encode(tiny, [""])
    assert item.input_ids.tolist() == [2, 3]
    with pytest.raises(InvalidRequest, match="input 0 has no tokens"):
        encode(tiny, [""], Params(add_special_tokens=False))


def test_prompts(tiny: Path) -> None:
    settings: dict[str, Any] = {"prompts": {"search": "query : ", "none": None}, "default_prompt_name": "search"}

    def prompted(**params: Any) -> list[list[int]]:
        return ids(encode(tiny, ["a"], Params(**params), **settings))

    default = ids(encode(tiny, ["query : a"]))
    assert prompted() == prompted(prompt_name="search") == prompted(prompt="query : ", prompt_name="no") == default
    assert prompted(prompt="") == prompted(prompt_name="none") == prompted(prompt_name="query") == [[2, 20, 3]]
    with pytest.raises(InvalidRequest, match=r"'qerry' is not a prompt of this model: 'query', 'document', 'search'"):
        prompted(prompt_name="qerry")
    with pytest.raises(InvalidRequest, match="prompt is not valid Unicode"):
        prompted(prompt="\ud800")


def test_a_prompt_goes_before_the_first_of_a_pair(tiny: Path) -> None:
    prompted, plain = encode(tiny, [("a", "b")], Params(prompt="query ")), encode(tiny, [("query a", "b")])
    assert ids(prompted) == ids(plain) and prompted[0].prompt_length == 2


def test_start_numbers_the_items(tiny: Path) -> None:
    tokenizer = Tokenizer(tiny, max_seq_len=LIMIT)
    assert [item.index for item in tokenizer.encode(["a", [7], ("a", "b")], Params(), 64)] == [64, 65, 66]
    with pytest.raises(InvalidRequest, match="input 65 "):
        tokenizer.encode(["a", []], Params(), 64)


def test_a_token_without_a_row_is_an_error(tiny: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"token '\.', id 27, which is out of the model's vocabulary of 20"):
        encode(tiny, ["a ."], vocab_size=20)


def test_settings_that_cannot_be(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="max_seq_len: 3 leaves no room beside 3 special tokens"):
        encode(tiny, ["a"], max_seq_len=3)
    with pytest.raises(CheckpointError, match="default_prompt_name 'x' is not among its prompts"):
        encode(tiny, ["a"], default_prompt_name="x")


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_json", ".json").replace("_txt", ".txt")).write_text(text)
    return folder


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, vocab\.txt.*save_pretrained"):
        encode(tmp_path, ["a"])
    with pytest.raises(CheckpointError, match="vocab.txt: .CLS., .SEP. is not in the vocabulary"):
        encode(write(tmp_path, vocab_txt="[UNK]\na\n"), ["a"])
    with pytest.raises(CheckpointError, match="tokenizer.json is not a tokenizer"):
        encode(write(tmp_path, tokenizer_json="{}"), ["a"])


def test_sentencepiece_alone_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n")
    with pytest.raises(CheckpointError, match=r"sentencepiece\.bpe\.model alone .* AutoTokenizer"):
        encode(tmp_path, ["a"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [2, 5, 3]),
        ({"do_lower_case": False}, [2, 1, 3]),
        ({"cls_token": "[MASK]", "sep_token": {"content": "[PAD]"}}, [4, 5, 0]),
    ],
)
def test_tokenizer_config_of_a_vocab_txt(tiny: Path, tmp_path: Path, config: dict[str, Any], expected: Any) -> None:
    shutil.copy(tiny / "vocab.txt", tmp_path)
    assert ids(encode(write(tmp_path, tokenizer_config_json=json.dumps(config)), ["The"])) == [expected]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BertJapaneseTokenizer", "vocab.txt: a BertJapaneseTokenizer finds words with MeCab or Sudachi, which is not"),
        ("PhobertTokenizer", "vocab.txt: a PhobertTokenizer finds words by bpe.codes, which is not read; take a model"),
        (
            "EsmTokenizer",
            "vocab.txt: no tokenizer.json, which an? EsmTokenizer needs; .* name BertTokenizer as tokenizer_",
        ),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer_config_json", "config_json"])
def test_a_vocab_txt_of_another_tokenizer(file: str, name: str, message: str, tiny: Path, tmp_path: Path) -> None:
    """Its words would be found in another way, and so the vectors would be of other tokens."""
    shutil.copy(tiny / "vocab.txt", tmp_path)
    with pytest.raises(CheckpointError, match=message):
        encode(write(tmp_path, **{file: json.dumps({"tokenizer_class": name})}), ["The"])


def test_truncation_side_of_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "vocab.txt", tmp_path)
    tokenizer = Tokenizer(write(tmp_path, tokenizer_config_json='{"truncation_side": "left"}'), max_seq_len=LIMIT)
    assert tokenizer.truncation_side == "left"


def test_special_ids(tiny: Path) -> None:
    assert Tokenizer(tiny, max_seq_len=8).special_ids == {"unk": 1, "sep": 3, "pad": 0, "cls": 2, "mask": 4}


def test_an_instruction_is_bounded_as_a_prompt_is(tiny: Path) -> None:
    tokenizer, most = Tokenizer(tiny, max_seq_len=LIMIT), 16 * LIMIT
    assert tokenizer.instruction_text(Params(instruction="a" * most)) == "a" * most
    assert tokenizer.instruction_text(Params()) == ""
    for param, read in (("prompt", tokenizer.prompt_text), ("instruction", tokenizer.instruction_text)):
        too_long: Any = {param: "a" * (most + 1)}
        with pytest.raises(InvalidRequest, match=f"{param} has 513 characters, the limit is 512") as error:
            read(Params(**too_long))
        assert error.value.param == param


@pytest.mark.parametrize(("vocabulary", "expected"), [({}, 0), ({"a": 0, "b": 1}, 2), ({"a": 0, "b": 7}, 8)])
def test_ids_may_have_holes(vocabulary: dict[str, int], expected: int) -> None:
    assert num_ids(tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "a"))) == expected


def test_mpnet_has_the_words_of_bert_and_the_special_tokens_of_roberta(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = ["<s>", "<pad>", "</s>", "[UNK]", "a", "b", "<mask>"]
    ends = {"cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>", "eos_token": "</s>"}
    theirs = transformers.MPNetTokenizer(vocab={word: place for place, word in enumerate(words)}, **ends)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    settings = {"tokenizer_class": "MPNetTokenizer", "unk_token": "[UNK]", "pad_token": "<pad>", **ends}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, _ = tokenizer_files.load(tmp_path)
    for pair in (("a",), ("a", "b"), ("", "b c")):
        assert ours.encode(*pair).ids == theirs(*pair)["input_ids"]


BERTS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
ROBERTAS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BYTES = ["", "the weather is lovely", "  two  spaces", "naïve café", "The [SEP] day </s> was", "a\nb\tc", "so so so"]


def byte_level(folder: Path, special: tuple[str, ...]) -> None:
    """A vocab.json and a merges.txt, as DeBERTa's and BART's checkpoints have them without a tokenizer.json."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, vocab_size=400, special_tokens=[*special], show_progress=False)
    tokenizer.save_model(str(folder))


def test_deberta_has_the_words_of_roberta_and_the_special_tokens_of_bert(tmp_path: Path) -> None:
    """But for pairs, between which transformers from 5 on has a second separator, that none was trained with."""
    transformers = pytest.importorskip("transformers")
    byte_level(tmp_path, BERTS)
    (tmp_path / "config.json").write_text('{"model_type": "deberta"}')
    theirs = transformers.DebertaTokenizer.from_pretrained(tmp_path)
    ours, config = tokenizer_files.load(tmp_path)
    assert config["tokenizer_class"] == "DebertaTokenizer"
    for text in BYTES:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
        pair = ours.encode(text, "the day")
        assert pair.ids == [*ours.encode(text).ids, *ours.encode("the day").ids[1:]]
        assert pair.type_ids == [0] * len(ours.encode(text).ids) + [1] * (len(ours.encode("the day").ids) - 1)


@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": "BartTokenizer"}])
def test_bart_has_robertas_tokenizer(settings: dict[str, str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    byte_level(tmp_path, ROBERTAS)
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    ours, config = tokenizer_files.load(tmp_path)
    assert config["tokenizer_class"] == "BartTokenizer"
    for text in BYTES:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
        assert ours.encode(text, "the day").ids == theirs(text, "the day")["input_ids"]


EXTRA = {"content": "<extra>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "a list": {"additional_special_tokens": ["<extra>", "<more>"]},
    "a list of objects": {"extra_special_tokens": [{"__type": "AddedToken", **EXTRA, "special": True}]},
    "by names": {"extra_special_tokens": {"image_token": "<extra>"}},
    "a role": {"pad_token": "<extra>", "additional_special_tokens": ["<more>"]},
    "a name": {"image_token": "<extra>"},
    "by ids": {"added_tokens_decoder": {"30523": {**EXTRA, "special": False}, "30522": {**EXTRA, "content": "<more>"}}},
    "special ones in pieces": {"split_special_tokens": True},
    "some in pieces": {"split_special_tokens": True, "additional_special_tokens": ["<extra>"]},
    "left": {"truncation_side": "left"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("side", ["Right", "Left"])
def test_settings_of_tokenizer_config_change_ids_as_theirs_do(
    settings: dict[str, Any], side: str, minilm: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(minilm / name, tmp_path / name)
    cut = {"direction": side, "max_length": 128, "strategy": "LongestFirst", "stride": 0}
    set_keys(tmp_path / "tokenizer.json", truncation=cut)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = {key: value for key, value in config.items() if key != "truncation_side"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**named, **settings}))
    texts = ["Hello [SEP] World <extra> naïve <more>", "it is [MASK] , 中文<extra>CAFÉ", "one two three four five six"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for limit in (6, 64):
        expected = theirs(texts, truncation=True, max_length=limit)["input_ids"]
        assert ids(encode(tmp_path, texts, max_seq_len=limit)) == expected
