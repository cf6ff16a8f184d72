"""A folder's tokenizer files -> one `tokenizers.Tokenizer`, and the facts of its configuration that matter."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from rtp_llm import config_files
from rtp_llm.checkpoint import find, inside, read_json
from rtp_llm.engine.tokenizer_added import add_configured, added_token
from rtp_llm.engine.tokenizer_cuts import steps
from rtp_llm.errors import CheckpointError, one_line

logger = logging.getLogger(__name__)

NO_LIMIT = 1 << 30
_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
_QWEN = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}
# transformers, models/qwen2/tokenization_qwen2.py: PRETOKENIZE_REGEX
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDS = ("bos", "eos")
_CLASSES = {
    "bert": "BertTokenizer", "distilbert": "DistilBertTokenizer", "electra": "ElectraTokenizer",
    "roberta": "RobertaTokenizer", "xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer",
    "mpnet": "MPNetTokenizer", "deberta-v2": "DebertaV2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
    "llama": "LlamaTokenizer", "mistral": "LlamaTokenizer", "gemma3_text": "GemmaTokenizer",
    "gte": "XLMRobertaTokenizer", "nomic_bert": "BertTokenizer", "jina_embeddings_v3": "XLMRobertaTokenizer",
    "albert": "AlbertTokenizer", "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer",
}  # fmt: skip
# Of these, transformers before 5 took the tokens at both ends from tokenizer_config.json alone.
_ENDED_CLASSES = ("LlamaTokenizer", "GemmaTokenizer")
_BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "MPNetTokenizer")
_UNTYPED_CLASSES = (
    "RobertaTokenizer", "XLMRobertaTokenizer", "CamembertTokenizer", "DistilBertTokenizer", "MPNetTokenizer",
    "BartTokenizer", "LongformerTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizer",
    "GemmaTokenizer", "TokenizersBackend",
)  # fmt: skip
# Of these, transformers before 5 had token types, and so had what was trained with it.
_UNTYPED_FROM_5 = ("AlbertTokenizer", "PreTrainedTokenizer")
# The kinds of steps of the normalizer and the pre-tokenizer that transformers 5 makes for a class, whatever
# tokenizer.json has.
_MADE = {
    **dict.fromkeys(_BERT_CLASSES, (("BertNormalizer",), ("BertPreTokenizer",))),
    **dict.fromkeys(
        ("XLMRobertaTokenizer", "CamembertTokenizer", "T5Tokenizer"),
        (("Precompiled",), ("WhitespaceSplit", "Metaspace")),
    ),
    "RobertaTokenizer": ((), ("ByteLevel",)),
    "DebertaV2Tokenizer": (("Replace", "NFC", "Strip"), ("Metaspace",)),
    "Qwen2Tokenizer": (("NFC",), ("Split", "ByteLevel")),
}


def load(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer, which neither cuts nor pads, and tokenizer_config.json with its `tokenizer_class` filled in."""
    config = read_json(folder, "tokenizer_config.json", required=False)
    config_files.check(folder / "tokenizer_config.json", config, config_files.TOKENIZER)
    hf = read_json(folder, "config.json", required=False)
    config["is_of_5"] = str(hf.get("transformers_version")).startswith("5.")
    if not config.get("tokenizer_class"):
        config["tokenizer_class"] = hf.get("tokenizer_class") or _CLASSES.get(str(hf.get("model_type")), "")
    config["tokenizer_class"] = str(config["tokenizer_class"]).removesuffix("Fast")
    special = read_json(folder, "special_tokens_map.json", required=False)
    config_files.check(folder / "special_tokens_map.json", special, config_files.TOKENIZER)
    config["special_tokens"], config["token_flags"] = _special_tokens({**special, **config})
    try:
        tokenizer = _made(folder, config)
        add_configured(tokenizer, config, special)
        tokenizer.encode_special_tokens = config.get("split_special_tokens") is True
        return tokenizer, config
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic inside the tokenizers library is no Exception
        reason = one_line(error)
        raise CheckpointError(f"{folder}: its tokenizer cannot be used: {reason:.300}; download it again") from error


def load_plain(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """tokenizer.json as it is but for special tokens, which it never adds; where it cuts is in `cuts_at` and its side.

    Source: sentence-transformers, StaticEmbedding, which reads no other file.
    """
    path = find(folder, "tokenizer.json")
    if path is None:
        raise CheckpointError(f"{folder}: no tokenizer.json, which a StaticEmbedding has; download it again")
    tokenizer = _read(path)
    cuts: dict[str, Any] = tokenizer.truncation or {"max_length": NO_LIMIT, "direction": "right"}
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None
    own = {"cuts_at": cuts["max_length"], "truncation_side": cuts["direction"]}
    return tokenizer, {"tokenizer_class": "", "special_tokens": {}, "token_flags": {}, **own}


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the border to the tokenizers library, which raises nothing narrower
        raise CheckpointError(f"{path} is not a tokenizer: {error}; download it again") from error


def _made(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    whole, vocab = find(folder, "tokenizer.json"), find(folder, "vocab.txt")
    if whole is not None:
        return _from_json(whole, config)
    if vocab is not None:
        return _bert(vocab, config)
    if find(folder, "vocab.json") is not None and find(folder, "merges.txt") is not None:
        return (_qwen if config["tokenizer_class"] == "Qwen2Tokenizer" else _roberta)(folder, config)
    pieces = next(folder.glob("*.model"), None)
    if pieces is not None:
        raise CheckpointError(f"{folder}: {pieces.name} alone is not read, a tokenizer.json is needed; {_WAY_OUT}")
    raise CheckpointError(f"{folder}: no tokenizer.json, vocab.txt, or vocab.json with merges.txt; {_WAY_OUT}")


_WAY_OUT = "write a tokenizer.json with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"


def _special_tokens(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Role -> token, and token -> the flags (`lstrip` and so on) that a file declares for it."""
    tokens = {key: token for key, token in config.items() if key.endswith("_token") and isinstance(token, (str, dict))}
    decoder = config.get("added_tokens_decoder")
    declared = [*tokens.values(), *(decoder.values() if isinstance(decoder, dict) else ())]
    contents = {
        key.removesuffix("_token"): token["content"] if isinstance(token, dict) else token
        for key, token in tokens.items()
    }
    return contents, {token["content"]: token for token in declared if isinstance(token, dict) and "content" in token}


def _from_json(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    tokenizer = _read(path)
    if tokenizer.truncation is not None and not config.get("truncation_side"):
        config["truncation_side"] = tokenizer.truncation["direction"]
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _heed_switches(tokenizer, config)
    _tell_of_other_steps(path, tokenizer, config["tokenizer_class"])
    if not config.get("added_tokens_decoder"):
        tokenizer.add_tokens([token for _, token in sorted(_declared_tokens(path.parent, config).items())])
    _add_ends(tokenizer, config)
    return tokenizer


def _heed_switches(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """What transformers' classes take from tokenizer_config.json, whatever tokenizer.json says."""
    name = config["tokenizer_class"]
    if name in _BERT_CLASSES and isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        tokenizer.normalizer = _bert_normalizer(config)
    if name == "RobertaTokenizer" and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))


def _tell_of_other_steps(path: Path, tokenizer: tokenizers.Tokenizer, name: str) -> None:
    """A line where transformers 5 would take other steps than tokenizer.json has, which are those of its training."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    own = tuple(tuple(str(step["type"]) for step in steps(part)) for part in parts)
    if name in _MADE and own != _MADE[name]:
        logger.info(
            "%s: read as it is (%s); transformers 5 makes a %s's own normalizer and pre-tokenizer, by which unusual "
            "characters may become other tokens", path, ", ".join(kind for kinds in own for kind in kinds), name,
        )  # fmt: skip


def _add_ends(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Honour `add_bos_token`, `add_eos_token` of tokenizer_config.json where tokenizer.json itself adds no token.

    gte-Qwen2 depends on it. Of _ENDED_CLASSES, EOS is added beside BOS too, on which e5-mistral depends. The template
    is that of transformers' update_post_processor.
    """
    special = config["special_tokens"]
    asked = {end: config.get(f"add_{end}_token") for end in _ENDS}
    own = tokenizer.post_processor
    if tokenizer.num_special_tokens_to_add(False):
        eos_id = tokenizer.token_to_id(special.get("eos", ""))
        is_ended = not asked["eos"] or tokenizer.encode("").ids[-1:] == [eos_id]
        if is_ended or config["tokenizer_class"] not in _ENDED_CLASSES:
            return
        asked["bos"], own = asked["bos"] is not False, None
    bos, eos = ([special[end]] if asked[end] is True and end in special else [] for end in _ENDS)
    ids = {token: tokenizer.token_to_id(token) for token in (*bos, *eos)}
    if not ids or None in ids.values():
        return
    single = [*bos, "$A", *eos]
    template = processors.TemplateProcessing(
        single=single,
        pair=[*single, *(f"{token}:1" for token in bos), "$B:1", *(f"{token}:1" for token in eos)],
        special_tokens=list(ids.items()),
    )
    tokenizer.post_processor = template if own is None else processors.Sequence([own, template])


def _bert_normalizer(config: Mapping[str, Any]) -> normalizers.BertNormalizer:
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
    special = _required(path, vocab, {**_BERT, **config["special_tokens"]}, ("unk", "cls", "sep"))
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=special["unk"]))
    tokenizer.normalizer = _bert_normalizer(config)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    _add_special(tokenizer, vocab, special, config)
    cls, sep = special["cls"], special["sep"]
    if config["tokenizer_class"] == "MPNetTokenizer":  # RoBERTa's special tokens around BERT's words
        tokenizer.post_processor = processors.RobertaProcessing((sep, vocab[sep]), (cls, vocab[cls]))
        return tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    return tokenizer


def _roberta(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE of vocab.json and merges.txt, under transformers' RobertaTokenizer's settings."""
    if config["tokenizer_class"] not in ("", "RobertaTokenizer"):
        raise CheckpointError(f"{folder}: no tokenizer.json, which a {config['tokenizer_class']} needs; {_WAY_OUT}")
    path = inside(folder, "vocab.json")
    vocab = read_json(folder, "vocab.json")
    special = _required(path, vocab, {**_ROBERTA, **config["special_tokens"]}, ("cls", "sep"))
    tokenizer = tokenizers.Tokenizer(_bpe(folder))
    prefix_space = bool(config.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    _add_declared(tokenizer, folder, _declared_tokens(folder, config))
    _add_special(tokenizer, vocab, special, config)
    cls, sep = special["cls"], special["sep"]
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
    _add_declared(tokenizer, folder, _declared_tokens(folder, config) or end)
    _add_ends(tokenizer, config)
    return tokenizer


def _bpe(folder: Path) -> models.BPE:
    try:
        return models.BPE.from_file(str(inside(folder, "vocab.json")), str(inside(folder, "merges.txt")))
    except Exception as error:  # the border to the tokenizers library, which raises nothing narrower
        raise CheckpointError(f"{folder}: vocab.json or merges.txt: {error}; download them again") from error


def _declared_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Id -> token beside the vocabulary: added_tokens_decoder of tokenizer_config.json, else added_tokens.json."""
    decoder = config.get("added_tokens_decoder")
    extra = config.get("additional_special_tokens") or ()
    named = (token["content"] if isinstance(token, dict) else token for token in extra)
    special = {*config["special_tokens"].values(), *named}
    try:
        if decoder is not None:
            return {int(token_id): added_token(token) for token_id, token in decoder.items()}
        return {
            int(token_id): AddedToken(content, normalized=content not in special, special=content in special)
            for content, token_id in read_json(folder, "added_tokens.json", required=False).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: added tokens of tokenizer_config.json or added_tokens.json: {error!r}"
        ) from None


def _add_declared(tokenizer: tokenizers.Tokenizer, folder: Path, declared: Mapping[int, AddedToken]) -> None:
    """Add tokens under their own ids; CheckpointError where the library would give one another."""
    for token_id, token in sorted(declared.items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise CheckpointError(
                f"{folder}: token {token.content!r} is declared with id {token_id}, but comes to stand at "
                f"{tokenizer.token_to_id(token.content)}; is vocab.json another model's?"
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


def add_lowercase(tokenizer: tokenizers.Tokenizer) -> None:
    """Lower-case before the tokenizer's own normalizer, as sentence-transformers does for its do_lower_case."""
    steps = [normalizers.Lowercase()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)


def add_markers(tokenizer: tokenizers.Tokenizer, markers: Iterable[str]) -> None:
    """Read each marker, or its first word, as one token where it is one of the tokenizer's, whatever it would become.

    Source: sentence-transformers, MultiVectorEncoder._register_prefix_tokens.
    """
    for marker in markers:
        names = [name for name in (marker, *marker.split()[:1]) if name and tokenizer.token_to_id(name) is not None]
        if names and tokenizer.encode(names[0], add_special_tokens=False).tokens != names[:1]:
            tokenizer.add_special_tokens([AddedToken(names[0], normalized=False, special=True)])


def special_ids(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> dict[str, int]:
    """Role (bos, eos, unk, sep, pad, cls, mask) -> id, of those that the vocabulary has."""
    defaults = _BERT if tokenizer.token_to_id("[CLS]") is not None else _ROBERTA
    tokens = {**({} if config["special_tokens"] else defaults), **config["special_tokens"]}
    ids = {role: tokenizer.token_to_id(token) for role, token in tokens.items() if role in _ROBERTA}
    return {role: token_id for role, token_id in ids.items() if token_id is not None}


def num_ids(tokenizer: tokenizers.Tokenizer) -> int:
    """One more than the greatest id."""
    num_tokens = int(tokenizer.get_vocab_size(with_added_tokens=True))
    # A dictionary of all tokens takes memory that Python keeps; it is needed only where ids have holes.
    if all(tokenizer.id_to_token(token_id) is not None for token_id in range(num_tokens)):
        return num_tokens
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def model_max_length(folder: Path) -> int:
    """tokenizer_config.json's limit; `NO_LIMIT` where it has none (transformers then writes a huge float)."""
    value = read_json(folder, "tokenizer_config.json", required=False).get("model_max_length")
    return int(min(value, NO_LIMIT)) if isinstance(value, (int, float)) and value > 0 else NO_LIMIT


def has_token_types(config: Mapping[str, Any]) -> bool:
    """Whether transformers would hand this tokenizer's token_type_ids to the model, by the release that saved it."""
    names, name = config.get("model_input_names"), config["tokenizer_class"]
    if isinstance(names, list):
        return "token_type_ids" in names
    return name not in _UNTYPED_CLASSES and not (name in _UNTYPED_FROM_5 and config.get("is_of_5"))
