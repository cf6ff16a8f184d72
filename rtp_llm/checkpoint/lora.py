"""A LoRA (Hu et al. 2021) in peft's files, and the weights that it is for: their sum, or what it would add to them.

Source: peft, tuners/lora: LoraLayer.update_layer and get_delta_weight of its Linear and Embedding; transformers'
maybe_load_adapters, which takes a folder's own weights for the adapter's base where it has a config.json.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rtp_llm.checkpoint.adapters import LowRank, add_product
from rtp_llm.checkpoint.folder import find, read_json
from rtp_llm.checkpoint.lora_targets import PLAIN_PATTERN, expression, left_out_by
from rtp_llm.checkpoint.shards import open_file
from rtp_llm.checkpoint.tensors import TensorInfo, TensorSource
from rtp_llm.checkpoint.weights import check_finite
from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.errors import CheckpointError

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
# Of a linear layer lora_A is [rank, K] and lora_B [N, rank]; of a table [rank, rows] and [columns, rank].
_LINEAR = re.compile(r"(?P<stem>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_TABLE = re.compile(r"(?P<stem>.+)\.lora_embedding_(?P<side>[AB])(\.default)?")
# Parts of other methods, and of variants, by their tensors' names.
_OTHER = re.compile(r"\.(lora_|hada_|lokr_|oft_|vera_|ia3_|trainable_tokens|token_adapter|prompt_)")
# Settings by which the product is another, or goes elsewhere; each is off where it is not there.
_OFF = (
    "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "layer_replication", "alora_invocation_tokens",
    "arrow_config",
)  # fmt: skip
# Ways to begin a training that leave the base's own weights as they are; others are told by words.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_MAX_ALPHA = float(np.finfo(np.float32).max)
_MERGE = "merge it with peft (merge_and_unload() and save_pretrained()) and serve that folder"


def open_lora(base: TensorSource, folder: Path) -> "LoraSource":
    """The weights of a base with the adapter's that is in this folder."""
    path = folder / CONFIG
    adapter = next((open_file(folder / name) for name in _FILES if find(folder, name) is not None), None)
    if adapter is None:
        raise CheckpointError(f"{path} is there, but {' and '.join(_FILES)} are missing; download them, or remove it")
    return LoraSource(base, adapter, path)


class _Part(NamedTuple):
    """The adapter's tensors whose product, scaled, is added to a weight."""

    a: str
    b: str
    is_table: bool
    scaling: float


class LoraSource:
    """The base's tensors by their names there, with the adapter's part added in fp32, or in their place."""

    def __init__(self, base: TensorSource, adapter: TensorSource, config: Path) -> None:
        self.path: Path = base.path
        self._base, self._adapter = base, adapter
        settings = _settings(config)
        stems, whole = _sorted(adapter)
        if not stems and not whole:
            raise CheckpointError(f"{adapter.path} has no tensors; download it again, or remove it and {config.name}")
        places = _Places(base.tensors)
        self._whole = {places.find(name) or name: tensor for name, tensor in whole.items()}
        self._parts: dict[str, _Part] = {}
        for stem, part in stems.items():
            name = places.find(f"{stem}.weight")
            if name is None:
                raise CheckpointError(
                    f"{adapter.path}: {part.a} is for {stem}.weight, which {base.path} has not; where that has other "
                    f"names than transformers, {_MERGE}"
                )
            _check_is_read(config, settings, stem, adapter)
            rank = _rank(adapter, part, base.tensors[name], f"{name} of {base.path.name}")
            _check_rank(config, settings, stem, rank)
            self._parts[name] = part._replace(scaling=_scaling(config, settings, stem, rank))
        replaced = {name: adapter.tensors[tensor] for name, tensor in self._whole.items()}
        self.tensors: Mapping[str, TensorInfo] = {**base.tensors, **replaced}

    @property
    def summary(self) -> str:
        """What of the base is changed, in words."""
        replaced = f", in the place of {len(self._whole)}" if self._whole else ""
        return f"added to {len(self._parts)} weights{replaced}"

    def read(self, name: str) -> FloatArray:
        if name in self._whole:
            return self._adapter.read(self._whole[name])
        values = self._base.read(name)
        if name not in self._parts:
            return values
        part = self._parts[name]
        rows, columns = self._factors(part)
        with np.errstate(over="ignore", invalid="ignore"):
            merged = add_product(values, rows, columns, part.scaling)
            if not np.isfinite(merged.sum()) and np.isfinite(values).all() and not np.isfinite(merged).all():
                raise self._too_large(part)
        return merged

    @property
    def replaced(self) -> str | None:
        """One of its tensors that come in the place of the base's; None: there are none."""
        return next(iter(self._whole.values()), None)

    @property
    def added(self) -> Collection[str]:
        """The base's tensors that it adds to."""
        return self._parts.keys()

    def low_rank(self, name: str) -> LowRank | None:
        """What it adds to a tensor of the base; None: it leaves that as it is."""
        if name not in self._parts:
            return None
        part = self._parts[name]
        rows, columns = self._factors(part)
        with np.errstate(over="ignore"):
            scaled = rows * np.float32(part.scaling)
        if not np.isfinite(scaled).all():
            raise self._too_large(part)
        return LowRank(scaled, columns)

    def _factors(self, part: _Part) -> tuple[FloatArray, FloatArray]:
        """[N, rank] and [rank, K], as they stand there."""
        a, b = self._adapter.read(part.a), self._adapter.read(part.b)
        check_finite(a, self._adapter, part.a)
        check_finite(b, self._adapter, part.b)
        return (a.T, b.T) if part.is_table else (b, a)

    def _too_large(self, part: _Part) -> CheckpointError:
        return CheckpointError(
            f"{self._adapter.path}: {part.a} by its lora_B, times {part.scaling:g}, is beyond fp32; look at "
            f"lora_alpha in {CONFIG}, or download both files again"
        )

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        if name not in self._parts and name not in self._whole:
            return self._base.read_part(name, axis, start, stop)
        return np.ascontiguousarray(np.take(self.read(name), range(start, stop), axis))

    def read_int8(self, name: str) -> Int8Array:
        return self._base.read_int8(name)

    def file(self, name: str) -> Path:
        return self._adapter.file(self._whole[name]) if name in self._whole else self._base.file(name)

    def close(self) -> None:
        self._base.close()
        self._adapter.close()


class _Places:
    """Where the base's file has a weight that the adapter names from another root: `model.layers`, or `layers`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def find(self, name: str) -> str | None:
        """The one tensor of this name, or of it with or without a head's prefix; None where there is none."""
        if name in self._names:
            return name
        longer = [own for own in self._names if own.endswith(f".{name}")]
        # NOTE: no number is cut off, so that `norm.weight` is not that of a layer.
        shorter = [own for own in self._names if name.endswith(f".{own}") and not re.search(r"\d", name[: -len(own)])]
        found = longer or shorter
        return found[0] if len(found) == 1 else None


def _sorted(adapter: TensorSource) -> tuple[dict[str, _Part], dict[str, str]]:
    """Module -> its pair of matrices, and tensor of the base -> the one that comes in its place."""
    sides: dict[str, dict[str, str]] = {}
    tables, whole = set(), {}
    for tensor in adapter.tensors:
        name = tensor.removeprefix(_PREFIX)
        match = _LINEAR.fullmatch(name) or _TABLE.fullmatch(name)
        if match is not None:
            sides.setdefault(match["stem"], {})[match["side"]] = tensor
            tables |= {match["stem"]} if "lora_embedding" in name else set()
        elif _OTHER.search(name):
            raise CheckpointError(f"{adapter.path}: {tensor} is of a kind that is not read; {_MERGE}")
        else:
            whole[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = tensor
    lacking = next((stem for stem, found in sides.items() if len(found) < 2), None)
    if lacking is not None:
        raise CheckpointError(f"{adapter.path}: {lacking} has one of lora_A and lora_B; download the file again")
    return {stem: _Part(found["A"], found["B"], stem in tables, 1.0) for stem, found in sides.items()}, whole


def _settings(path: Path) -> dict[str, Any]:
    """adapter_config.json; CheckpointError for what is not a plain LoRA."""
    settings = read_json(path.parent, path.name)
    kind, start = settings.get("peft_type"), settings.get("init_lora_weights")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type {kind!r}; a LORA is read; {_MERGE}")
    unserved = next((key for key in _OFF if settings.get(key)), None)
    if unserved is not None:
        raise CheckpointError(f"{path}: {unserved} {settings[unserved]!r:.80} is not read; {_MERGE}")
    if start not in _PLAIN_STARTS:
        raise CheckpointError(f"{path}: init_lora_weights {start!r:.80} changes the base's weights as well; {_MERGE}")
    return settings


def _scaling(path: Path, settings: Mapping[str, Any], stem: str, rank: int) -> float:
    """Of a module's product: alpha by its rank, or by the rank's root."""
    alpha = _of_module(path, {"lora_alpha": 8, **settings}, "lora_alpha", "alpha_pattern", stem)
    if type(alpha) not in (int, float) or not abs(alpha) <= _MAX_ALPHA:
        raise CheckpointError(f"{path}: lora_alpha is {alpha!r:.80}; a number within those of fp32 is needed")
    return float(alpha / (rank**0.5 if settings.get("use_rslora") else rank))


def _check_is_read(path: Path, settings: Mapping[str, Any], stem: str, adapter: TensorSource) -> None:
    """CheckpointError where adapter_config.json leaves a module out, so that peft does not read its tensors."""
    key = left_out_by(path, settings, stem)
    if key is not None:
        raise CheckpointError(
            f"{path}: {key} {settings[key]!r:.120} leaves {stem} out, so that peft does not read its lora_A and lora_B "
            f"in {adapter.path.name}; take the file that was saved with these tensors"
        )


def _check_rank(path: Path, settings: Mapping[str, Any], stem: str, rank: int) -> None:
    """CheckpointError where adapter_config.json names another rank than the tensors have, as peft has it."""
    said = _of_module(path, settings, "r", "rank_pattern", stem)
    if said is not None and (type(said) is not int or said != rank):
        raise CheckpointError(
            f"{path}: r is {said!r:.80}, but lora_A and lora_B of {stem} have rank {rank}; take the file that was "
            "saved with these tensors"
        )


def _of_module(path: Path, settings: Mapping[str, Any], key: str, patterns_key: str, stem: str) -> Any:
    """A setting of a module: of the first pattern that fits its name, else everybody's; None: it is not said."""
    patterns = settings.get(patterns_key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path}: {patterns_key} is {patterns!r:.80}; an object from names to numbers is needed")
    for pattern, own in patterns.items():
        if not PLAIN_PATTERN.fullmatch(pattern):
            raise CheckpointError(f"{path}: {patterns_key} {pattern!r:.80} is not read: names with dots are; {_MERGE}")
        if expression(path, patterns_key, rf"(.*\.)?({pattern})$").match(stem):
            return own
    return settings.get(key)


def _rank(adapter: TensorSource, part: _Part, weight: TensorInfo, name: str) -> int:
    """The rank of a module's matrices, which must fit its weight."""
    if not weight.dtype.startswith(("fp", "bf")):
        raise CheckpointError(
            f"{adapter.path}: {name} is {weight.dtype}; an adapter is added to weights in fp32, fp16 or bf16"
        )
    a, b = adapter.tensors[part.a].shape, adapter.tensors[part.b].shape
    if 0 in (*a, *b):
        raise CheckpointError(f"{adapter.path}: {part.a} {list(a)} or its lora_B {list(b)} is empty; save it again")
    fits = len(a) == len(b) == 2 and a[0] == b[1] > 0
    if not fits or weight.shape != ((a[1], b[0]) if part.is_table else (b[0], a[1])):
        raise CheckpointError(
            f"{adapter.path}: lora_A {list(a)} and lora_B {list(b)} do not fit {name} {list(weight.shape)}; "
            "it is an adapter of another model"
        )
    return a[0]
