"""A tokenizer made of a sentencepiece file of the Unigram kind, where a folder has no tokenizer.json.

Source: transformers 5, the tokenization files of the classes that FORMS names, `convert_from_spm` of their converters.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from rtp_llm.checkpoint import find
from rtp_llm.engine.sentencepiece_file import CONTROL, UNIGRAM, USER_DEFINED, Pieces, read_pieces
from rtp_llm.engine.tokenizer_added import added_token, declared_tokens
from rtp_llm.engine.tokenizer_vocabulary import BERT, ROBERTA, WAY_OUT, add_declared
from rtp_llm.errors import CheckpointError

_SPACE = "▁"  # what stands for a space in a piece
_Config: TypeAlias = Mapping[str, Any]  # tokenizer_config.json, with `special_tokens` by their roles
_Scored: TypeAlias = list[tuple[str, float]]


class Form(NamedTuple):
    """How a class reads its file.

    special    role -> token, where no file names another
    arrange    tokens with their scores by id, and the id of what is unknown
    normalize  steps before words, of which the file's charsmap may be one
    split      steps that find words, and where a space is put before them: "always", "first" or "never"
    ends       by roles, and with token types, what stands around a text, and around the texts of a pair
    """

    file: str
    special: Mapping[str, str]
    arrange: Callable[[Pieces, _Config], tuple[_Scored, int]]
    normalize: Callable[[list[normalizers.Normalizer], _Config], list[normalizers.Normalizer]]
    split: Callable[[_Config], tuple[list[pre_tokenizers.PreTokenizer], str]]
    ends: tuple[str, str]


def from_pieces(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer | None:
    """The tokenizer of the class that `config` names, as transformers makes it; None without that class's file.

    CheckpointError where the file is damaged or of another kind. `special_tokens` of `config` is filled up.
    """
    form = FORMS.get(config["tokenizer_class"])
    path = find(folder, form.file) if form is not None else None
    if form is None or path is None:
        return None
    found = read_pieces(path)
    if found.model_type != UNIGRAM:
        raise CheckpointError(f"{path}: its pieces are not of the Unigram kind, which alone is read; {WAY_OUT}")
    config["special_tokens"] = {**form.special, **config["special_tokens"]}
    try:
        return _made(path, form, found, config)
    except CheckpointError:
        raise
    except Exception as error:  # the border to the tokenizers library, which raises nothing narrower
        raise CheckpointError(f"{path} makes no tokenizer: {error}; download it again") from error


def _made(path: Path, form: Form, found: Pieces, config: _Config) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram(*form.arrange(found, config), byte_fallback=False))
    steps = form.normalize([normalizers.Precompiled(found.charsmap)] if found.charsmap else [], config)
    if steps:
        tokenizer.normalizer = steps[0] if len(steps) == 1 else normalizers.Sequence(steps)
    words, scheme = form.split(config)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words, pre_tokenizers.Metaspace(_SPACE, scheme)])
    tokenizer.decoder = decoders.Metaspace(_SPACE, scheme)
    _add(tokenizer, path, found, config)
    special = config["special_tokens"]
    single, pair = ([_part(part, special) for part in end.split()] for end in form.ends)
    roles = {part.partition(":")[0] for part in form.ends[0].split() if part[0] != "$"}
    ids = {special[role]: tokenizer.token_to_id(special[role]) for role in sorted(roles)}
    if None in ids.values():
        raise CheckpointError(f"{path}: {', '.join(map(repr, ids))} cannot stand around a text; name other tokens")
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[*ids.items()])
    return tokenizer


def _part(part: str, special: Mapping[str, str]) -> str:
    """A part of `Form.ends`, with the token in place of its role."""
    role, colon, type_id = part.partition(":")
    return part if role[0] == "$" else special[role] + colon + type_id


def _add(tokenizer: tokenizers.Tokenizer, path: Path, found: Pieces, config: _Config) -> None:
    """Tokens that are found before words are: declared ones, those of the roles, the file's own, T5's extra ids."""
    name, special = config["tokenizer_class"], config["special_tokens"]
    declared = declared_tokens(path.parent, config)
    add_declared(tokenizer, path, declared)
    known = {token.content for token in declared.values()}
    flags = dict(config["token_flags"])
    if name == "CamembertTokenizer":
        flags.setdefault(special["mask"], {"lstrip": True})
    roles = [token for token in _in_order(special) if token not in known]
    tokenizer.add_tokens([added_token({**flags.get(token, {}), "content": token, "special": True}) for token in roles])
    # NOTE: as transformers 5 has it, tokens that tokenizer_config.json lists stand for those of the file.
    if any(not isinstance(config.get(key, {}), dict) for key in ("additional_special_tokens", "extra_special_tokens")):
        return
    own = [
        AddedToken(piece.text, normalized=False, special=piece.kind == CONTROL or piece.text in special.values())
        for piece in found.pieces
        if piece.kind in (CONTROL, USER_DEFINED)
    ]
    extra = [AddedToken(token, special=True) for token in _extra_ids(config)] if FORMS[name].arrange is _t5 else []
    tokenizer.add_tokens([token for token in (*own, *extra) if token.content not in known])


def _in_order(special: Mapping[str, str]) -> list[str]:
    """Tokens in the order in which transformers adds them: that of their ids where the file has none of them."""
    return [*dict.fromkeys((*(special[role] for role in ROBERTA if role in special), *special.values()))]


def _fairseq(found: Pieces, config: _Config) -> tuple[_Scored, int]:
    """fairseq has four tokens of its own before the pieces, of which the first three do not count, and one behind."""
    special = config["special_tokens"]
    first = [(special[role], 0.0) for role in ("bos", "pad", "eos", "unk")]
    return [*first, *_scored(found)[3:], (special["mask"], 0.0)], 3


def _camembert(found: Pieces, config: _Config) -> tuple[_Scored, int]:
    """As fairseq's, but that the pieces' own ends count, and those before them do not."""
    special = config["special_tokens"]
    first = [("<s>NOTUSED", 0.0), (special["pad"], 0.0), ("</s>NOTUSED", 0.0), (special["unk"], 0.0)]
    return [*first, ("<unk>NOTUSED", -100.0), *_scored(found)[1:], (special["mask"], 0.0)], 3


def _albert(found: Pieces, _: _Config) -> tuple[_Scored, int]:
    return _scored(found), 1


def _t5(found: Pieces, config: _Config) -> tuple[_Scored, int]:
    return [*_scored(found), *((token, 0.0) for token in reversed(_extra_ids(config)))], 2


def _deberta(found: Pieces, config: _Config) -> tuple[_Scored, int]:
    vocab, unknown = _scored(found), (config["special_tokens"]["unk"], 0.0)
    return vocab, vocab.index(unknown) if unknown in vocab else found.unk_id


def _scored(found: Pieces) -> _Scored:
    return [(piece.text, piece.score) for piece in found.pieces]


def _extra_ids(config: _Config) -> list[str]:
    return [f"<extra_id_{number}>" for number in range(config.get("extra_ids", 100))]


def _charsmap(charsmap: list[normalizers.Normalizer], _: _Config) -> list[normalizers.Normalizer]:
    return charsmap


def _unaccented(charsmap: list[normalizers.Normalizer], config: _Config) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not config.get("keep_accents"):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if config.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    return [*steps, *charsmap]


def _composed(_: list[normalizers.Normalizer], config: _Config) -> list[normalizers.Normalizer]:
    """NOTE: transformers before 5 took the file's charsmap, mostly NFKC, where it is NFC now."""
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if config.get("do_lower_case") else []
    blanks = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    return [*steps, blanks, normalizers.NFC(), normalizers.Strip(left=False, right=True)]


def _by_spaces(config: _Config) -> tuple[list[pre_tokenizers.PreTokenizer], str]:
    return [pre_tokenizers.WhitespaceSplit()], "always" if config.get("add_prefix_space", True) else "never"


def _always_by_spaces(_: _Config) -> tuple[list[pre_tokenizers.PreTokenizer], str]:
    return [pre_tokenizers.WhitespaceSplit()], "always"


def _by_punctuation(config: _Config) -> tuple[list[pre_tokenizers.PreTokenizer], str]:
    scheme = "always" if config.get("add_prefix_space", True) else "first"
    return [pre_tokenizers.Punctuation("isolated")] if config.get("split_by_punct") else [], scheme


_T5_SPECIAL = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
_DEBERTA_SPECIAL = {**BERT, "bos": "[CLS]", "eos": "[SEP]"}
_ALBERT_SPECIAL = {**_DEBERTA_SPECIAL, "unk": "<unk>", "pad": "<pad>"}
_BERT_ENDS = "cls:0 $A:0 sep:0", "cls:0 $A:0 sep:0 $B:1 sep:1"
_ROBERTA_ENDS = "bos $A eos", "bos $A eos eos $B eos"
_FAIRSEQ_FILE = "sentencepiece.bpe.model"  # which is of the Unigram kind all the same
_T5 = Form("spiece.model", _T5_SPECIAL, _t5, _charsmap, _always_by_spaces, ("$A eos", "$A eos $B eos"))
# Class, without "Fast" -> how it reads its file.
FORMS = {
    "XLMRobertaTokenizer": Form(_FAIRSEQ_FILE, ROBERTA, _fairseq, _charsmap, _by_spaces, _ROBERTA_ENDS),
    "CamembertTokenizer": Form(_FAIRSEQ_FILE, ROBERTA, _camembert, _charsmap, _by_spaces, _ROBERTA_ENDS),
    "AlbertTokenizer": Form("spiece.model", _ALBERT_SPECIAL, _albert, _unaccented, _by_spaces, _BERT_ENDS),
    "DebertaV2Tokenizer": Form("spm.model", _DEBERTA_SPECIAL, _deberta, _composed, _by_punctuation, _BERT_ENDS),
    "T5Tokenizer": _T5,
    "MT5Tokenizer": _T5,
}
