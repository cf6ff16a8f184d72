"""Small tokenizer.json files as decoders have them, with BOS and EOS, against transformers' AutoTokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from rtp_llm.core import Params
from rtp_llm.engine.tokenizer import Tokenizer
from tests.conftest import WORDS
from tests.engine.test_token_equality import check, pairs_of

transformers = pytest.importorskip("transformers")

LIMIT = 12
TEXTS = [
    "", "the weather is lovely today", "  two  spaces", "Query: he drove", "naïve 🙂 café", "a\nb\tc", "1234 56",
    "so sunny " * 20, "internationalization" * 9, "he said </s> and <eos>", "今天天气很好",
]  # fmt: skip
_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sentence_piece(bos: str, eos: str, others: list[str], ends: bool) -> tokenizers.Tokenizer:
    """BPE over characters, with bytes for what is unknown."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    special = [*others, bos, eos, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(learnt["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*others, bos, eos)])
    tokenizer.post_processor = template(tokenizer, bos, eos if ends else "")
    return tokenizer


def template(tokenizer: tokenizers.Tokenizer, bos: str, eos: str) -> Any:
    end = f" {eos}:0" if eos else "", f" {eos}:1" if eos else ""
    ids = [(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token]
    return processors.TemplateProcessing(
        single=f"{bos}:0 $A:0{end[0]}", pair=f"{bos}:0 $A:0{end[0]} {bos}:1 $B:1{end[1]}", special_tokens=ids
    )


def mistral(ends: bool) -> tokenizers.Tokenizer:
    tokenizer = sentence_piece("<s>", "</s>", ["<unk>"], ends)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def gemma() -> tokenizers.Tokenizer:
    tokenizer = sentence_piece("<bos>", "<eos>", ["<pad>", "<unk>"], ends=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def llama_3() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    words = pre_tokenizers.Split(Regex(_LLAMA_3_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template(tokenizer, "<|begin_of_text|>", "")]
    )
    return tokenizer


MISTRAL = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CASES: dict[str, tuple[str, Any, dict[str, Any], tuple[str, str]]] = {
    # name: model_type, tokenizer, tokenizer_config.json, its first and its last token
    "e5-mistral": ("mistral", lambda: mistral(ends=True), {**MISTRAL, "add_eos_token": True}, ("<s>", "</s>")),
    "e5-mistral, by its config": (
        "mistral", lambda: mistral(ends=False), {**MISTRAL, "add_eos_token": True}, ("<s>", "</s>")
    ),
    "mistral, no bos by its config": (
        "mistral", lambda: mistral(ends=False), {**MISTRAL, "add_bos_token": False, "add_eos_token": True}, ("", "</s>")
    ),
    "mistral": ("mistral", lambda: mistral(ends=False), MISTRAL, ("<s>", "")),
    "llama 3": (
        "llama", llama_3,
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>",
         "model_input_names": ["input_ids", "attention_mask"]},
        ("<|begin_of_text|>", ""),
    ),
    "embeddinggemma": (
        "gemma3_text", gemma,
        {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
         "pad_token": "<pad>", "add_bos_token": True, "add_eos_token": True},
        ("<bos>", "<eos>"),
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[str, str]]:
    model_type, make, config, ends = CASES[request.param]
    make().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return tmp_path, ends


def their_tokenizer(folder: Path) -> Any:
    """Of Llama's, transformers 5 takes the ends from tokenizer.json alone, transformers 4 took them from the config."""
    theirs: Any = transformers.AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if config.get("add_eos_token"):
        theirs.add_bos_token, theirs.add_eos_token = config.get("add_bos_token", True), True
    return theirs


def test_ids_equal_transformers(case: tuple[Path, tuple[str, str]]) -> None:
    folder, (first, last) = case
    theirs, ours = their_tokenizer(folder), Tokenizer(folder, max_seq_len=LIMIT)
    expected = theirs(TEXTS, truncation=True, max_length=LIMIT)["input_ids"]
    check(expected, lambda kept: ours.encode(kept, Params()), TEXTS)
    for row in expected:
        assert not first or row[0] == theirs.convert_tokens_to_ids(first)
        assert not last or row[-1] == theirs.convert_tokens_to_ids(last)
    assert max(map(len, expected)) == LIMIT


def test_pairs_equal_transformers(case: tuple[Path, tuple[str, str]]) -> None:
    folder, _ = case
    theirs, ours = their_tokenizer(folder), Tokenizer(folder, max_seq_len=200)
    pairs = [*pairs_of(TEXTS)]
    expected = theirs(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=200)["input_ids"]
    check(expected, lambda kept: ours.encode(kept, Params()), pairs)
