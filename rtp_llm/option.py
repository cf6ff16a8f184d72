"""One option: a dataclass field that knows its help, group, choices, range and environment variable, and its values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field
from typing import Any

from rtp_llm.errors import ConfigError

_TRUE, _FALSE = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off")


def option(
    default: Any = MISSING,
    *,
    help: str,
    group: str,
    choices: Sequence[str] | Mapping[str, str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    env: str | None = None,
    aliases: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """A dataclass field that knows everything about one option; the field's type is the value's.

    default  none: the option must be given
    group    the heading that it stands under, in --help and docs/flags.md
    choices  what the value may be; a mapping also normalises it
    env      the variable, where it is not the field's name in capitals
    aliases  other names of the flag
    secret   stays out of `repr`

    A field of type tuple[str, ...] is given several times, or with commas.
    """
    metadata = {
        "help": help, "group": group, "choices": choices, "minimum": minimum, "maximum": maximum, "env": env,
        "aliases": aliases,
    }  # fmt: skip
    return field(default=default, metadata=metadata, repr=not secret)


def checked(spec: Field[Any], value: Any) -> Any:
    """`value` as the option's own type and spelling; ConfigError names the option, the value and what is allowed."""
    choices, minimum, maximum = (spec.metadata[key] for key in ("choices", "minimum", "maximum"))
    if choices:
        spellings = choices if isinstance(choices, Mapping) else {choice: choice for choice in choices}
        if str(value).lower() not in spellings:
            names = sorted({str(v) for v in spellings.values()})
            raise ConfigError(f"{spec.name}: {value!r} is not one of {', '.join(names)}", param=spec.name)
        return spellings[str(value).lower()]
    if minimum is not None and value < minimum:
        raise ConfigError(f"{spec.name}: {value} is below the least allowed, {minimum:g}", param=spec.name)
    if maximum is not None and value > maximum:
        raise ConfigError(f"{spec.name}: {value} is above the most allowed, {maximum:g}", param=spec.name)
    return value


def parsed(spec: Field[Any], text: str) -> Any:
    """What a command line or an environment says of the option; ConfigError as `checked`."""
    return checked(spec, _typed(spec, text))


def environment_name(spec: Field[Any]) -> str:
    """The variable that sets this option."""
    return str(spec.metadata["env"] or spec.name.upper())


def _typed(spec: Field[Any], text: str) -> Any:
    if spec.type is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ConfigError(f"{spec.name}: {text!r} is not a yes or no ({'/'.join(_TRUE)} or {'/'.join(_FALSE)})")
        return text.lower() in _TRUE
    if spec.type is int:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{spec.name}: {text!r} is not a whole number") from None
    if spec.type is float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ConfigError(f"{spec.name}: {text!r} is not a number")
        return number
    if spec.type == tuple[str, ...]:
        values = tuple(filter(None, map(str.strip, text.split(","))))
        if not values:
            raise ConfigError(f"{spec.name}: the value is empty; leave the option out instead")
        return values
    return text
