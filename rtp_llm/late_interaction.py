"""What the files of a late-interaction checkpoint (ColBERT: Khattab and Zaharia 2020) say, in any of three layouts.

native   sentence-transformers 6, MultiVectorEncoder: how queries are read stands in sentence_bert_config.json, what is
         left out of the answer in a module MultiVectorMask
pylate   both stand in config_sentence_transformers.json; the mask and a Normalize come after the modules, which do not
         name them
authors  ColBERT's: architecture HF_ColBERT, `linear.weight` beside the encoder's tensors, artifact.metadata, no modules

Read as sentence-transformers 6 reads them, MultiVectorEncoder's `_parse_model_config` and `_load_default_modules`.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from rtp_llm import config_files
from rtp_llm.architectures import HF_COLBERT
from rtp_llm.checkpoint import read_json
from rtp_llm.errors import CheckpointError

Layout: TypeAlias = Literal["native", "pylate", "authors"]

_PROJECTION = (r"^linear\.weight$",)
SIDES = ("query", "document")
_LENGTH = 32  # of ColBERT's queries, where no file says it
# Keys of config_sentence_transformers.json by which PyLate's checkpoints are told.
_PYLATE_KEYS = (
    "query_prefix", "document_prefix", "do_query_expansion", "attend_to_expansion_tokens", "attend_to_mask_tokens",
    "skiplist_words", "query_length", "document_length", "query_expansion",
)  # fmt: skip
_QUERY_KEYS = ("query_length", "document_length", "query_expansion")


class Expansion(NamedTuple):
    """What follows a query up to `length` tokens: `token`, or the tokenizer's mask, or its end of text.

    fixed    a longer query is cut at `length`
    attends  the tokens see each other, and are seen by the query's own
    """

    length: int
    fixed: bool
    attends: bool
    token: str | None


@dataclass(frozen=True, kw_only=True)
class LateInteraction:
    """How a checkpoint reads queries and documents, and which of their vectors it keeps.

    limits     side -> tokens kept of a text, before the expansion; None: the model's limit
    prompts    name -> text put before an input; those of both sides are always there
    markers    prompts of which the tokenizer may have a token, which it must then read as one
    skipped    tokens of which vectors are left out, on the sides `skips_on`
    kept_ids   if not empty, the only tokens of documents whose vectors are kept
    max_sim    how the similarity of a query and a document adds up over the query's vectors
    layout     of its files
    """

    limits: Mapping[str, int | None]
    expansion: Expansion | None
    prompts: Mapping[str, str]
    markers: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    skips_on: tuple[str, ...] = ("document",)
    kept_ids: tuple[int, ...] = ()
    max_sim: Literal["sum", "mean"] = "sum"
    layout: Layout = "native"

    @property
    def max_seq_length(self) -> int | None:
        """Tokens of the longer side; None: what the model can read."""
        lengths = [*self.limits.values(), self.expansion.length if self.expansion else 1]
        return None if None in lengths else max(length for length in lengths if length is not None)


@dataclass(frozen=True, kw_only=True)
class Files:
    """What has been read of a checkpoint.

    modules      kind and folder of each module after the transformer; None: there is no modules.json
    transformer  sentence_bert_config.json, found at `path`
    sentence     config_sentence_transformers.json
    limit        tokens of one input by sentence_bert_config.json
    """

    folder: Path
    hf: Mapping[str, Any]
    modules: Sequence[tuple[str, Path]] | None
    path: Path
    transformer: Mapping[str, Any]
    sentence: Mapping[str, Any]
    limit: int | None

    @property
    def is_of_authors(self) -> bool:
        """Whether config.json names ColBERT's authors' class."""
        return HF_COLBERT in (self.hf.get("architectures") or ())

    @property
    def has_prefixes(self) -> bool:
        """Whether there are PyLate's markers of either side."""
        return any(f"{side}_prefix" in self.sentence for side in SIDES)

    @property
    def mask(self) -> Path | None:
        """The folder of MultiVectorMask; None where there is no such module."""
        return next((folder for kind, folder in self.modules or () if kind == "MultiVectorMask"), None)


def beside_encoder(hf: Mapping[str, Any]) -> tuple[str, ...]:
    """What ColBERT's authors keep beside the encoder's tensors, as `checkpoint.bind` ignores it: the projection."""
    return _PROJECTION if HF_COLBERT in (hf.get("architectures") or ()) else ()


def read(files: Files) -> LateInteraction | None:
    """None for a checkpoint of another kind; CheckpointError for settings that are not served."""
    if files.modules is None and files.is_of_authors:
        return _of_authors(files)
    if files.modules is None or not _is_late(files):
        _check_no_sides(files)
        return None
    settings = _pylate(files.sentence)
    # What the module's own file says comes first, null or not.
    settings.update({key: files.transformer[key] for key in _QUERY_KEYS if key in files.transformer})
    prompts, markers = _prompts(files.sentence)
    layout: Layout = "native" if _keeps_chain(files) else "pylate"
    return LateInteraction(
        **_sides(files, settings),
        **({"skipped": _pylate_skipped(files)} if layout == "pylate" else _mask(files)),
        prompts=prompts,
        markers=markers,
        max_sim="mean" if files.sentence.get("similarity_fn_name") == "meanmaxsim" else "sum",
        layout=layout,
    )


def _is_late(files: Files) -> bool:
    """Whether some file says so: a model type, the architecture, a module, PyLate's prefixes."""
    is_said = files.sentence.get("model_type") in ("MultiVectorEncoder", "ColBERT")
    return is_said or files.is_of_authors or files.mask is not None or files.has_prefixes


def _keeps_chain(files: Files) -> bool:
    """Whether sentence-transformers takes the modules as they are: not PyLate's, which name no mask."""
    model_type = files.sentence.get("model_type")
    if model_type == "MultiVectorEncoder":
        return True
    return model_type is None and (files.is_of_authors or files.mask is not None)


def _pylate_skipped(files: Files) -> tuple[str, ...]:
    """The words that are left out of documents: punctuation, where PyLate names none."""
    words = files.sentence.get("skiplist_words")
    is_pylate = files.sentence.get("model_type") == "ColBERT" or files.has_prefixes
    return tuple(string.punctuation if is_pylate else ()) if words is None else tuple(words)


def _check_no_sides(files: Files) -> None:
    """CheckpointError where a checkpoint of one vector a text has lengths that hang on what the text is for."""
    for key in _QUERY_KEYS:
        if files.transformer.get(key) is not None:
            raise CheckpointError(
                f"{files.path}: {key} is served with a vector for each token (MultiVectorMask in modules.json) alone; "
                "remove it, and say the limit as max_seq_length"
            )


def _pylate(sentence: Mapping[str, Any]) -> dict[str, Any]:
    """PyLate's settings as sentence-transformers': without a word, queries are expanded."""
    settings = {key: sentence[key] for key in _QUERY_KEYS if key in sentence}
    settings = {key: value for key, value in settings.items() if value is not None or key == "query_expansion"}
    if "query_expansion" in settings or not any(key in sentence for key in _PYLATE_KEYS):
        return settings
    if sentence.get("do_query_expansion") is False:
        return {**settings, "query_expansion": None}
    attends = sentence.get("attend_to_expansion_tokens", sentence.get("attend_to_mask_tokens"))
    length = settings.pop("query_length", None) or _LENGTH
    return {**settings, "query_expansion": {"strategy": "fixed", "attend": bool(attends), "length": length}}


def _prompts(sentence: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The prompts, PyLate's prefixes ahead of them; and those prefixes."""
    prompts = dict.fromkeys(SIDES, "")
    prompts |= {name: text or "" for name, text in (sentence.get("prompts") or {}).items()}
    markers = []
    for side in SIDES:
        if f"{side}_prefix" in sentence:
            marker = sentence[f"{side}_prefix"] or ""
            prompts[side] = marker + prompts[side].removeprefix(marker)
            markers.append(marker)
    return prompts, tuple(markers)


def _sides(files: Files, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`limits` and `expansion`, checked as sentence-transformers checks them."""
    expansion, query = _expansion(files, settings.get("query_expansion")), settings.get("query_length")
    if expansion is not None and query is not None and query < expansion.length:
        raise CheckpointError(
            f"{files.path}: query_length {query} is less than query_expansion's length {expansion.length}; remove it"
        )
    if expansion is not None and expansion.fixed:
        query = expansion.length
    document = settings.get("document_length")
    return {"limits": {"query": query or files.limit, "document": document or files.limit}, "expansion": expansion}


def _expansion(files: Files, given: Mapping[str, Any] | None) -> Expansion | None:
    if given is None:
        return None
    where = f"{files.path}: query_expansion"
    config_files.check(where, given, config_files.EXPANSION)
    unknown = sorted(set(given) - set(config_files.EXPANSION))
    if unknown or given.get("strategy") not in ("fixed", "min") or given.get("length") is None:
        raise CheckpointError(
            f"{where} {dict(given)!r:.200} is not served; strategy fixed or min with a length is, attend and token"
        )
    _check_padding(files)
    # transformers' DeBERTa embeds what is not attended to as zeros, and lets it see the padding of its batch.
    name = files.hf.get("model_type")
    if name in ("deberta", "deberta-v2") and not given.get("attend"):
        raise CheckpointError(f"{where}: of {name}, an expansion is served with attend true alone")
    return Expansion(given["length"], given["strategy"] == "fixed", bool(given.get("attend")), given.get("token"))


def _check_padding(files: Files) -> None:
    """CheckpointError where expansion tokens would come before the query."""
    config = read_json(files.folder, "tokenizer_config.json", required=False)
    changes = {**(files.transformer.get("tokenizer_args") or {}), **(files.transformer.get("processor_kwargs") or {})}
    if "left" in (config.get("padding_side"), changes.get("padding_side")):
        raise CheckpointError(
            f"{files.folder / 'tokenizer_config.json'}: padding_side left puts a query's expansion before it, which is "
            "not served; right is"
        )


def _mask(files: Files) -> dict[str, Any]:
    """What MultiVectorMask's config.json says; nothing is left out where there is no such module."""
    folder = files.mask
    settings = {} if folder is None else read_json(folder, "config.json", required=False)
    if folder is not None:
        config_files.check(folder / "config.json", settings, config_files.MASK)
        config_files.log_unknown(folder / "config.json", settings, config_files.MASK)
    tasks = settings.get("skiplist_tasks")
    return {
        "skipped": tuple(settings.get("skiplist_words") or ()),
        "skips_on": ("document",) if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks),
        "kept_ids": tuple(settings.get("keep_only_token_ids") or ()),
    }


def _of_authors(files: Files) -> LateInteraction:
    """ColBERT's own layout: markers at the start, queries of 32 tokens, no punctuation in documents."""
    metadata = read_json(files.folder, "artifact.metadata", required=False)
    config_files.check(files.folder / "artifact.metadata", metadata, config_files.ARTIFACT)
    markers = (f"{metadata.get('query_token_id') or '[unused0]'} ", f"{metadata.get('doc_token_id') or '[unused1]'} ")
    length = metadata.get("query_maxlen") or _LENGTH
    expansion = {"strategy": "fixed", "attend": bool(metadata.get("attend_to_mask_tokens")), "length": length}
    settings = {"document_length": metadata.get("doc_maxlen"), "query_expansion": expansion}
    return LateInteraction(
        **_sides(files, settings),
        prompts=dict(zip(SIDES, markers, strict=True)),
        markers=markers,
        skipped=tuple(string.punctuation) if metadata.get("mask_punctuation", True) else (),
        layout="authors",
    )
