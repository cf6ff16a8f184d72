"""A folder's tokenizer files -> one `tokenizers.Tokenizer`, and the facts of its configuration that matter."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, normalizers, pre_tokenizers

from rtp_llm import config_files
from rtp_llm.checkpoint import find, read_json
from rtp_llm.engine.tokenizer_added import add_configured, add_ends, declared_tokens
from rtp_llm.engine.tokenizer_cuts import steps
from rtp_llm.engine.tokenizer_pieces import from_pieces
from rtp_llm.engine.tokenizer_vocabulary import BERT, ROBERTA, bert_normalizer, from_vocabulary
from rtp_llm.errors import CheckpointError, one_line

logger = logging.getLogger(__name__)

NO_LIMIT = 1 << 30
# config.json's model_type -> the tokenizer's class, where no file names that.
_CLASSES = {
    "bert": "BertTokenizer", "distilbert": "DistilBertTokenizer", "electra": "ElectraTokenizer",
    "roberta": "RobertaTokenizer", "xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer",
    "mpnet": "MPNetTokenizer", "deberta-v2": "DebertaV2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
    "llama": "LlamaTokenizer", "mistral": "LlamaTokenizer", "gemma3_text": "GemmaTokenizer",
    "gte": "XLMRobertaTokenizer", "nomic_bert": "BertTokenizer", "jina_embeddings_v3": "XLMRobertaTokenizer",
    "albert": "AlbertTokenizer", "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer",
    "bart": "BartTokenizer", "deberta": "DebertaTokenizer", "dpr": "BertTokenizer", "mt5": "T5Tokenizer",
    "t5": "T5Tokenizer", "clip": "CLIPTokenizer", "clip_text_model": "CLIPTokenizer",
}  # fmt: skip
_BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "MPNetTokenizer")
# Of these, transformers hands the model no token types.
_UNTYPED_CLASSES = (
    "RobertaTokenizer", "XLMRobertaTokenizer", "CamembertTokenizer", "DistilBertTokenizer", "MPNetTokenizer",
    "BartTokenizer", "LongformerTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizer",
    "GemmaTokenizer", "TokenizersBackend", "CLIPTokenizer",
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
    "CLIPTokenizer": (("NFC", "Replace", "Lowercase"), ("Split", "ByteLevel")),
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
    whole = find(folder, "tokenizer.json")
    if whole is not None:
        return _from_json(whole, config)
    return from_pieces(folder, config) or from_vocabulary(folder, config)


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
        tokenizer.add_tokens([token for _, token in sorted(declared_tokens(path.parent, config).items())])
    add_ends(tokenizer, config)
    return tokenizer


def _heed_switches(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """What transformers' classes take from tokenizer_config.json, whatever tokenizer.json says."""
    name = config["tokenizer_class"]
    if name in _BERT_CLASSES and isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        tokenizer.normalizer = bert_normalizer(config)
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
    defaults = BERT if tokenizer.token_to_id("[CLS]") is not None else ROBERTA
    tokens = {**({} if config["special_tokens"] else defaults), **config["special_tokens"]}
    ids = {role: tokenizer.token_to_id(token) for role, token in tokens.items() if role in ROBERTA}
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
