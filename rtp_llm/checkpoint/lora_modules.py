"""The folders of adapters (LoRA) that requests choose by name: `--lora_modules NAME=FOLDER`."""

from dataclasses import replace
from pathlib import Path

from rtp_llm.checkpoint import hub
from rtp_llm.checkpoint.folder import find
from rtp_llm.checkpoint.lora import CONFIG
from rtp_llm.config import EngineConfig
from rtp_llm.errors import CheckpointError, ConfigError
from rtp_llm.served_models import lora_module


def lora_modules(config: EngineConfig) -> dict[str, Path]:
    """Name -> folder, in the order in which they were given; what is a hub id is fetched.

    ConfigError for what is not NAME=FOLDER, or a name that is there twice; CheckpointError for what is no adapter.
    """
    found: dict[str, Path] = {}
    for module in config.lora_modules:
        name, place = lora_module(module)
        if name in found:
            raise ConfigError(f"lora_modules: {name!r} is there twice", param="lora_modules")
        found[name] = _folder(name, place, config)
    return found


def _folder(name: str, place: str, config: EngineConfig) -> Path:
    try:
        folder = hub.resolve(replace(config, checkpoint_path=place, revision=""))
    except CheckpointError as error:
        message = error.message.removeprefix("checkpoint_path: ")
        raise CheckpointError(f"lora_modules: {name}: {message}") from error
    if find(folder, CONFIG) is None:
        raise CheckpointError(f"lora_modules: {name}: {folder} has no {CONFIG}; give the folder that peft saved")
    return folder
