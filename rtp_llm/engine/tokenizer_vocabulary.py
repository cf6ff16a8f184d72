"""A tokenizer made of vocabulary files alone, where a folder has no tokenizer.json: WordPiece, or byte-level BPE."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from rtp_llm.checkpoint import find, inside, read_json
from rtp_llm.engine.tokenizer_added import add_ends, added_token, declared_tokens
from rtp_llm.errors import CheckpointError

BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
ROBERTA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
_CLIP = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"}
# transformers, models/clip/tokenization_clip.py
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_QWEN = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}
# transformers, models/qwen2/tokenization_qwen2.py: PRETOKENIZE_REGEX
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WAY_OUT = "write a tokenizer.json with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
# Classes whose vocab.txt is of WordPiece behind BERT's steps; "": no file names one.
_WORDPIECE = frozenset(
    ("", "PreTrainedTokenizer", "TokenizersBackend")
    + tuple(
        f"{stem}Tokenizer"
        for stem in (
            "Bert", "DistilBert", "Electra", "MPNet", "MobileBert", "ConvBert", "SqueezeBert", "Ernie", "Nezha",
            "LayoutLM", "Lxmert", "RetriBert", "DPRQuestionEncoder", "DPRContextEncoder", "DPRReader",
        )
    )
)  # fmt: skip
# Classes that transformers has no tokenizer.json of -> how they find words, and what to take instead.
_OTHERS = {
    "BertJapaneseTokenizer": "with MeCab or Sudachi, which is not served; take a model that has a tokenizer.json, such "
    "as ruri-v3",
    **dict.fromkeys(
        ("PhobertTokenizer", "BertweetTokenizer"),
        "by bpe.codes, which is not read; take a model that has a tokenizer.json, such as an XLM-RoBERTa",
    ),
}


def from_vocabulary(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of the class that `config` names, as transformers makes it; CheckpointError without its files."""
    vocab = find(folder, "vocab.txt")
    if vocab is not None:
        _check_wordpiece(vocab, config["tokenizer_class"])
        return _bert(vocab, config)
    if find(folder, "vocab.json") is not None and find(folder, "merges.txt") is not None:
        return _OF_CLASS.get(config["tokenizer_class"], _roberta)(folder, config)
    pieces = next(folder.glob("*.model"), None)
    if pieces is not None:
        reader = config["tokenizer_class"] or "tokenizer whose class no file names"
        raise CheckpointError(
            f"{folder}: {pieces.name} alone is not read for a {reader}, a tokenizer.json is needed; {WAY_OUT}"
        )
    raise CheckpointError(
        f"{folder}: no tokenizer.json, vocab.txt, or vocab.json with merges.txt, and no sentencepiece file; {WAY_OUT}"
    )


def _check_wordpiece(path: Path, name: str) -> None:
    """CheckpointError where the class finds words in another way than BERT, of which the vocabulary shows nothing."""
    if name in _OTHERS:
        raise CheckpointError(f"{path}: a {name} finds words {_OTHERS[name]}")
    if name not in _WORDPIECE:
        raise CheckpointError(
            f"{path}: no tokenizer.json, which a {name} needs; {WAY_OUT}. Where it cuts texts as BERT's does, name "
            "BertTokenizer as tokenizer_class in tokenizer_config.json"
        )


def bert_normalizer(config: Mapping[str, Any]) -> normalizers.BertNormalizer:
    """BERT's steps before words, as tokenizer_config.json switches them."""
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars") is not False,
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case") is not False,
    )


def _bert(path: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """WordPiece of a vocab.txt, one token a line, under transformers' BertTokenizer's settings."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    vocab = {token: index for index, token in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    special = _required(path, vocab, {**BERT, **config["special_tokens"]}, ("unk", "cls", "sep"))
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=special["unk"]))
    tokenizer.normalizer = bert_normalizer(config)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    _add_special(tokenizer, vocab, special, config)
    cls, sep = special["cls"], special["sep"]
    if config["tokenizer_class"] == "MPNetTokenizer":  # RoBERTa's special tokens around BERT's words
        tokenizer.post_processor = processors.RobertaProcessing((sep, vocab[sep]), (cls, vocab[cls]))
        return tokenizer
    tokenizer.post_processor = _bert_ends(cls, sep, vocab)
    return tokenizer


def _bert_ends(cls: str, sep: str, vocab: Mapping[str, int]) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )


def _roberta(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE of vocab.json and merges.txt, under the settings of transformers' RobertaTokenizer, BartTokenizer
    or, with BERT's special tokens, DebertaTokenizer.
    """
    is_deberta = config["tokenizer_class"] == "DebertaTokenizer"
    if config["tokenizer_class"] not in ("", "RobertaTokenizer", "BartTokenizer", "DebertaTokenizer"):
        raise CheckpointError(f"{folder}: no tokenizer.json, which a {config['tokenizer_class']} needs; {WAY_OUT}")
    path = inside(folder, "vocab.json")
    vocab = read_json(folder, "vocab.json")
    ends = BERT if is_deberta else ROBERTA
    special = _required(path, vocab, {**ends, **config["special_tokens"]}, ("cls", "sep"))
    tokenizer = tokenizers.Tokenizer(_bpe(folder))
    prefix_space = bool(config.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    add_declared(tokenizer, path, declared_tokens(folder, config))
    _add_special(tokenizer, vocab, special, config)
    cls, sep = special["cls"], special["sep"]
    if is_deberta:
        # NOTE: as its authors and transformers before 5, with which its checkpoints were trained; later ones write a
        # second separator between the texts of a pair.
        tokenizer.post_processor = _bert_ends(cls, sep, vocab)
        return tokenizer
    tokenizer.post_processor = processors.RobertaProcessing(
        (sep, vocab[sep]), (cls, vocab[cls]), config.get("trim_offsets", True), prefix_space
    )
    return tokenizer


def _qwen(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE of vocab.json and merges.txt, under transformers' Qwen2Tokenizer's settings."""
    config["special_tokens"] = {**_QWEN, **config["special_tokens"]}
    tokenizer = tokenizers.Tokenizer(_bpe(folder))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(tokenizers.Regex(_QWEN_WORDS), "isolated")
    prefix_space = bool(config.get("add_prefix_space", False))
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    # A folder that declares no token beside its vocabulary has this one all the same, with the next id.
    end = {tokenizer.get_vocab_size(): AddedToken(_QWEN["eos"], normalized=False, special=True)}
    add_declared(tokenizer, inside(folder, "vocab.json"), declared_tokens(folder, config) or end)
    add_ends(tokenizer, config)
    return tokenizer


def _clip(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """BPE of vocab.json and merges.txt, whose words end in a mark, under transformers' CLIPTokenizer's settings."""
    path, vocab = inside(folder, "vocab.json"), read_json(folder, "vocab.json")
    special = _required(path, vocab, {**_CLIP, **config["special_tokens"]}, ("bos", "eos", "unk"))
    tokenizer = tokenizers.Tokenizer(_bpe(folder, end_of_word_suffix="</w>", unk_token=special["unk"]))
    blanks = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    add_declared(tokenizer, path, declared_tokens(folder, config))
    # NOTE: the end token pads too, and as that it is named without flags, which transformers then takes.
    flags = {token: own for token, own in config["token_flags"].items() if token != special["pad"]}
    _add_special(tokenizer, vocab, special, {**config, "token_flags": flags})
    bos, eos = special["bos"], special["eos"]
    tokenizer.post_processor = processors.RobertaProcessing((eos, vocab[eos]), (bos, vocab[bos]), False, False)
    return tokenizer


# Class -> what makes it of vocab.json and merges.txt; of others, `_roberta` knows which it is made for.
_OF_CLASS = {"Qwen2Tokenizer": _qwen, "CLIPTokenizer": _clip}


def _bpe(folder: Path, **options: str) -> models.BPE:
    try:
        return models.BPE.from_file(str(inside(folder, "vocab.json")), str(inside(folder, "merges.txt")), **options)
    except Exception as error:  # the border to the tokenizers library, which raises nothing narrower
        raise CheckpointError(f"{folder}: vocab.json or merges.txt: {error}; download them again") from error


def add_declared(tokenizer: tokenizers.Tokenizer, path: Path, declared: Mapping[int, AddedToken]) -> None:
    """Add tokens to those of `path`, under their own ids; CheckpointError where the library would give one another."""
    for token_id, token in sorted(declared.items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise CheckpointError(
                f"{path.parent}: token {token.content!r} is declared with id {token_id}, but comes to stand at "
                f"{tokenizer.token_to_id(token.content)}; is {path.name} another model's?"
            )


def _required(
    path: Path, vocab: Mapping[str, Any], special: Mapping[str, str], roles: tuple[str, ...]
) -> Mapping[str, str]:
    absent = [special[role] for role in roles if special[role] not in vocab]
    if absent:
        raise CheckpointError(f"{path}: {', '.join(absent)} is not in the vocabulary; name it in tokenizer_config.json")
    return special


def _add_special(
    tokenizer: tokenizers.Tokenizer, vocab: Mapping[str, Any], special: Mapping[str, str], config: Mapping[str, Any]
) -> None:
    known = dict.fromkeys(token for token in special.values() if token in vocab)
    plain = {"normalized": False}
    flags = config["token_flags"]
    tokenizer.add_special_tokens(
        [added_token({**flags.get(token, plain), "content": token, "special": True}) for token in known]
    )
