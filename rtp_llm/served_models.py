"""Which models one process serves: one, several by `--checkpoint_path PATH` or `NAME=PATH`, or those of a YAML file."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rtp_llm import arguments
from rtp_llm.config import EngineConfig, ServerConfig
from rtp_llm.errors import ConfigError, one_line
from rtp_llm.flags import Repeated

# What all models share: the device, its threads, and what holds for requests before their model is known.
_SHARED = ("backend", "device", "num_threads", "instruction_set", "bulk_share", "warm_up")
_OWN = {spec.name: spec for spec in fields(EngineConfig) if spec.name not in _SHARED}
_SPELLINGS = {alias: name for name, spec in _OWN.items() for alias in spec.metadata["aliases"]} | {
    "name": "served_model_name",
    "served_model_name": "served_model_name",
    "aliases": "aliases",
    **{name: name for name in _OWN},
}


@dataclass(frozen=True)
class ServedModel:
    """One of them: `config` with all that is its own, and further names that callers may use."""

    config: ServerConfig
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.config.model_name


def served_models(config: ServerConfig, given: Repeated) -> list[ServedModel]:
    """The models that the configuration and the command line name, in their order; the first is the default.

    ConfigError for a file that cannot be read or has a wrong key or value, and for names that are not clear.
    """
    if config.models:
        if given.checkpoints:
            raise ConfigError("models: give a file of models or checkpoint_path, not both", param="models")
        models = _from_file(config)
    else:
        models = _from_flags(config, given)
    _check_names(models)
    return models


def _from_flags(config: ServerConfig, given: Repeated) -> list[ServedModel]:
    names, paths = zip(*map(_name_and_path, given.checkpoints), strict=True)
    if given.names:
        if len(given.names) != len(paths) or any(names):
            message = f"served_model_name: {len(given.names)} names for {len(paths)} checkpoints"
            raise ConfigError(f"{message}; give one for each, or NAME=PATH", param="served_model_name")
        names = given.names
    return [
        ServedModel(replace(config, checkpoint_path=path, served_model_name=name))
        for name, path in zip(names, paths, strict=True)
    ]


def _name_and_path(value: str) -> tuple[str, str]:
    """NAME=PATH -> both; what is a folder as it stands, or begins as a path, is a path alone.

    ConfigError where there is a slash before the =, and no folder of that name.
    """
    name, equals, path = value.partition("=")
    if not (equals and name and path) or name.startswith(("/", "./", "../", "~/")) or os.path.exists(value):
        return "", value
    if "/" in name:
        raise ConfigError(
            f"checkpoint_path: {value!r:.200} is no folder, and NAME=PATH takes no name with a slash: give "
            f"--served_model_name {name:.100} and --checkpoint_path {path:.100}",
            param="checkpoint_path",
        )
    return name, path


def lora_module(value: str) -> tuple[str, str]:
    """NAME=FOLDER of `lora_modules` -> both; ConfigError for anything else."""
    name, _, place = (part.strip() for part in value.partition("="))
    if not (name and place):
        raise ConfigError(f"lora_modules: {value!r:.200} is not NAME=FOLDER or NAME=HUB_ID", param="lora_modules")
    return name, place


def _from_file(config: ServerConfig) -> list[ServedModel]:
    """`models: [{checkpoint_path: …, name: …, …}, …]`"""
    content = _read(config.models)
    if not isinstance(content, dict) or list(content) != ["models"]:
        raise _wrong(config, "the file must have one key, `models`, with a list of models")
    entries = content["models"]
    if not isinstance(entries, list) or not entries:
        raise _wrong(config, "models must be a list of at least one model")
    models = []
    for number, entry in enumerate(entries, 1):
        try:
            models.append(_entry(config, entry))
        except ConfigError as error:
            raise _wrong(config, f"model {number}: {error.message}") from None
    return models


def _read(path: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"models: {path} cannot be read: {error}", param="models") from None
    except yaml.YAMLError as error:
        problem = one_line(error)
        raise ConfigError(f"models: {path} is not YAML: {problem:.300}", param="models") from None


def _entry(config: ServerConfig, entry: Any) -> ServedModel:
    if not isinstance(entry, dict):
        raise ConfigError(f"{entry!r:.100} is not a mapping of options to values")
    values: dict[str, Any] = {}
    for key, value in entry.items():
        name = _own_option(key)
        if name in values:
            raise ConfigError(f"{key}: {name} is there twice")
        values[name] = value
    aliases = _aliases(values.pop("aliases", []))
    if not values.get("checkpoint_path"):
        raise ConfigError("checkpoint_path is missing")
    named = {"served_model_name": str, **{name: spec.type for name, spec in _OWN.items()}}
    typed = {name: arguments.option(name, named[name], value) for name, value in values.items()}
    return ServedModel(replace(config, **{"served_model_name": "", **typed}), aliases)


def _own_option(key: Any) -> str:
    """The option's own name; ConfigError with the nearest where there is none of this name."""
    spelled = str(key).lower().replace("-", "_")
    if spelled in _SPELLINGS:
        return _SPELLINGS[spelled]
    if spelled in {spec.name for spec in fields(ServerConfig)}:
        raise ConfigError(f"{key}: all models share this option; give it to the server")
    near = difflib.get_close_matches(spelled, _SPELLINGS, n=1, cutoff=0.5)
    raise ConfigError(f"unknown option {key!s:.100}" + (f"; did you mean {near[0]}?" if near else ""))


def _aliases(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(alias, str) and alias for alias in listed):
        raise ConfigError(f"aliases: {value!r:.100} is not a list of names")
    return tuple(listed)


def _wrong(config: ServerConfig, problem: str) -> ConfigError:
    return ConfigError(f"models: {config.models}: {problem}", param="models")


def _check_names(models: Sequence[ServedModel]) -> None:
    """ConfigError where a name means two models, or a model and an adapter."""
    meaning: dict[str, tuple[ServedModel, str]] = {}
    for model in models:
        path = model.config.checkpoint_path
        named = [(name, path) for name in (model.name, *model.aliases)]
        named += [(name, f"the adapter {place}") for name, place in map(lora_module, model.config.lora_modules)]
        for name, what in named:
            holder, other = meaning.setdefault(name, (model, what))
            if holder is not model or other != what:
                message = (
                    f"{other} and {what} are both called {name!r}; give names, as NAME=PATH or by served_model_name"
                )
                raise ConfigError(message, param="served_model_name")
