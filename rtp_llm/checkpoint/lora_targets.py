"""Which modules an adapter is of, by the words of adapter_config.json.

Source: peft, tuners/tuners_utils.py: check_target_module_exists. It reads no tensors of another module, and says so in
a warning at most. A regular expression with repetitions is not looked at: a stranger's may take for ever.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtp_llm.errors import CheckpointError

# What a name may be of the regular expressions that peft takes it for: without repetitions.
PLAIN_PATTERN = re.compile(r"\^?[\w.\\]+\$?")
_ALL = "all-linear"  # peft's word, which it replaces by names when it saves


def expression(path: Path, key: str, text: str) -> "re.Pattern[str]":
    """What adapter_config.json has under `key`; CheckpointError where it is no regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise CheckpointError(f"{path}: {key} {text!r:.120} is no regular expression: {error}") from None


def left_out_by(path: Path, settings: Mapping[str, Any], stem: str) -> str | None:
    """The setting by which peft would not read the tensors of the module `stem`; None where it reads them.

    CheckpointError for a setting of another type than peft has.
    """
    excluded, targets = (_names(path, settings, key) for key in ("exclude_modules", "target_modules"))
    if excluded and _names_module(path, "exclude_modules", excluded, stem):
        return "exclude_modules"
    saved = _names(path, settings, "modules_to_save") or []
    if any(f".{name}." in f".{stem}." for name in ([saved] if isinstance(saved, str) else saved)):
        return "modules_to_save"
    if targets is None:  # which peft fills by the kind of the model
        return None
    if _names_module(path, "target_modules", targets, stem) is False:
        return "target_modules"
    is_by_ending = isinstance(targets, list) and stem not in targets
    return "layers_to_transform" if is_by_ending and not _is_in_layers(path, settings, stem) else None


def _names(path: Path, settings: Mapping[str, Any], key: str) -> str | list[str] | None:
    value = settings.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    raise CheckpointError(f"{path}: {key} is {value!r:.80}; a list of modules' names is needed")


def _names_module(path: Path, key: str, names: str | list[str], stem: str) -> bool | None:
    """Whether one of the names, or the expression, is the module's; None where that is not looked at."""
    if isinstance(names, list):
        return any(stem == name or stem.endswith(f".{name}") for name in names)
    if names == _ALL or not PLAIN_PATTERN.fullmatch(names):
        return None
    return expression(path, key, names).fullmatch(stem) is not None


def _is_in_layers(path: Path, settings: Mapping[str, Any], stem: str) -> bool:
    layers, pattern = settings.get("layers_to_transform"), _names(path, settings, "layers_pattern") or []
    if layers is None or layers == []:
        return True
    numbers = layers if isinstance(layers, list) else [layers]
    if not all(type(number) is int for number in numbers):
        raise CheckpointError(f"{path}: layers_to_transform is {layers!r:.80}; numbers of layers are needed")
    patterns = [pattern] if isinstance(pattern, str) else pattern
    if not all(map(PLAIN_PATTERN.fullmatch, patterns)):
        return True
    layers_of = [expression(path, "layers_pattern", rf".*\.{name}\.(\d+)\.") for name in patterns or [r"[^.]*"]]
    found = (layer_of.match(stem) for layer_of in layers_of)
    number = next((int(match[1]) for match in found if match), None)
    return number in numbers
