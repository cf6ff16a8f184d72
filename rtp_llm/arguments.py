"""What callers of the library pass: sequences of any make become lists, all else an InvalidRequest that names it."""

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np

from rtp_llm.config import ServerConfig
from rtp_llm.core import Input, Params
from rtp_llm.errors import ConfigError, InvalidRequest

_PARAMS = tuple(field.name for field in fields(Params))

_READ = "a text, a pair of texts or a list of token ids is read"


def options(checkpoint_path: Any, values: Mapping[str, Any]) -> ServerConfig:
    """The configuration; ConfigError for a value of the wrong type, TypeError for an unknown option."""
    given = {"checkpoint_path": checkpoint_path, **values}
    given = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in given.items()}
    for spec in fields(ServerConfig):
        if spec.name in given:
            given[spec.name] = option(spec.name, spec.type, given[spec.name])
    return ServerConfig(**given)


def option(name: str, wanted: Any, value: Any) -> Any:
    """`value` as a field of type `wanted`: a whole number is a float too, any sequence of texts a tuple."""
    if wanted == tuple[str, ...] and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if type(value) is not wanted and (type(value), wanted) != (int, float):
        kind = "a sequence of texts" if wanted == tuple[str, ...] else wanted.__name__
        raise ConfigError(f"{name}: {value!r:.100} is {_kind(value)}; {kind} is needed", param=name)
    return value


def inputs(values: Any, name: str = "inputs") -> list[Input]:
    """One text, or an iterable of texts, pairs and lists of token ids -> a list; arrays become Python's own values."""
    return [_input(value, place, name) for place, value in enumerate(_listed(values, name))]


def texts(values: Any, name: str) -> list[str]:
    """One text or an iterable of texts -> a list."""
    listed = _listed(values, name)
    for place, value in enumerate(listed):
        if not isinstance(value, str):
            raise InvalidRequest(f"{name}[{place}] is {_kind(value)}; a text is needed", param=name)
    return listed


def text(value: Any, name: str) -> str:
    """`value`, which must be a text."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is {_kind(value)}; a text is needed", param=name)
    return value


def count(value: Any, name: str) -> int | None:
    """A whole number of at least 1, or None."""
    if value is None:
        return None
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise InvalidRequest(f"{name}: {value!r:.100} is not a whole number of at least 1", param=name)
    return int(value)


def numbers(values: Any, name: str) -> list[float] | None:
    """An iterable of numbers -> a list, or None."""
    if values is None:
        return None
    listed = _listed(values, name)
    for place, value in enumerate(listed):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise InvalidRequest(f"{name}[{place}] is {_kind(value)}; a number is needed", param=name)
    return listed


def choice(value: Any, allowed: Sequence[str], name: str) -> str:
    """`value`, which must be one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidRequest(f"{name}: {value!r:.100} is not one of {', '.join(allowed)}", param=name)
    return value


def params(**values: Any) -> Params:
    """core.Params of values of their declared types; TypeError for a field that there is not, as Python's own."""
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
    made = Params(**plain)
    try:
        return msgspec.convert({name: getattr(made, name) for name in _PARAMS}, Params)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        field = place.rstrip("`")
        raise InvalidRequest(f"{field}: {getattr(made, field)!r:.100}: {problem.lower()}", param=field) from None


def _listed(values: Any, name: str) -> list[Any]:
    """The values themselves; what is one text stands for a list of one."""
    if hasattr(values, "tolist") and not isinstance(values, (bytearray, memoryview)):
        values = values.tolist()
    if isinstance(values, str):
        return [values]
    if isinstance(values, (bytes, bytearray, memoryview)):
        raise InvalidRequest(f"{name} is {_kind(values)}; decode it to text first", param=name)
    if isinstance(values, (Mapping, Set)) or not isinstance(values, Iterable):
        raise InvalidRequest(f"{name} is {_kind(values)}; one or a list of them is read", param=name)
    return list(values)


def _input(value: Any, place: int, name: str) -> Input:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        return value
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return value
    if isinstance(value, list):
        return [int(number) if isinstance(number, np.integer) else number for number in value]
    parts = f" of {len(value)}" if isinstance(value, tuple) else ""
    raise InvalidRequest(f"{name}[{place}] is {_kind(value)}{parts}; {_READ}", param=name)


def _kind(value: Any) -> str:
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
