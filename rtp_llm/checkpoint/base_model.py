"""`resolved`: the checkpoint's folder; where that is an adapter's, one of links that has its base's files too.

An adapter as peft saves it names its base in adapter_config.json, by a hub id or a path. jina-embeddings-v5 has its
base, and below `adapters` one for each of its tasks, of which the key `lora_task` over config.json chooses one for all
requests; without it each request does.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rtp_llm.checkpoint import hub
from rtp_llm.checkpoint.adapter_folders import FOLDER, adapter_places, has_folders
from rtp_llm.checkpoint.folder import find, read_json
from rtp_llm.checkpoint.links import linked
from rtp_llm.checkpoint.lora import CONFIG
from rtp_llm.checkpoint.shards import has_weights
from rtp_llm.config import EngineConfig
from rtp_llm.errors import CheckpointError

logger = logging.getLogger(__name__)

OWN_CONFIG = "adapter.config.json"
_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")
_TOKENIZER = (
    "tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json", "chat_template*",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.*", "vocab.*", "*.model")


@contextmanager
def resolved(config: EngineConfig, progress: bool = True) -> Iterator[Path]:
    """As `hub.resolve`, for as long as the checkpoint is read; errors meanwhile name its files, and not the links.

    CheckpointError also where an adapter's base is not to be had, or one is chosen that there is not.
    """
    folder = hub.resolve(config, progress)
    entries: dict[str, Path] = {}
    if find(folder, CONFIG) is not None:
        # NOTE: weights beside an adapter are its base, as transformers has it.
        entries = {} if has_weights(folder) else dict(_with_base(folder, config, progress))
    elif has_folders(folder):
        entries = dict(_with_task(folder, config))
    if not entries:
        yield folder
        return
    runs_code = bool(config.custom_module) or config.trust_remote_code
    with linked(folder, entries, keep=runs_code) as links:
        yield links


def _with_base(adapter: Path, config: EngineConfig, progress: bool) -> Iterator[tuple[str, Path]]:
    """The adapter's files, with config.json and weights of its base, and its tokenizer where the adapter has none.

    A config.json of the adapter's own stands beside it as OWN_CONFIG.
    """
    settings = read_json(adapter, CONFIG)
    base = _base_folder(adapter, settings, config, progress)
    own = {entry.name: entry for entry in adapter.iterdir()}
    yield from own.items()
    if "config.json" in own:
        yield OWN_CONFIG, own["config.json"]
    has_tokenizer = any(fnmatch(name, pattern) for name in own for pattern in _VOCABULARIES)
    for entry in base.iterdir():
        is_model = entry.name == "config.json" or any(fnmatch(entry.name, pattern) for pattern in _WEIGHTS)
        is_tokenizer = not has_tokenizer and any(fnmatch(entry.name, pattern) for pattern in _TOKENIZER)
        if is_model or is_tokenizer:
            yield entry.name, entry


def _base_folder(adapter: Path, settings: dict[str, Any], config: EngineConfig, progress: bool) -> Path:
    where, name = adapter / CONFIG, settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{where}: base_model_name_or_path is {name!r:.80}; the hub id or path of a model is needed"
        )
    revision = settings.get("revision")
    asked = replace(config, checkpoint_path=name, revision=revision if isinstance(revision, str) else "")
    logger.info("%s: an adapter of %s", where, name)
    try:
        base = hub.resolve(asked, progress)
    except CheckpointError as error:
        raise CheckpointError(
            f"{where}: its base model {name!r} is not to be had: {error.message.removeprefix('checkpoint_path: ')}; "
            "say in base_model_name_or_path where it is, or merge the adapter with peft (merge_and_unload() and "
            "save_pretrained()) and serve that folder"
        ) from error
    if find(base, CONFIG) is not None:
        raise CheckpointError(f"{where}: its base model {name} is an adapter itself; merge that one with peft first")
    return base


def _with_task(folder: Path, config: EngineConfig) -> Iterator[tuple[str, Path]]:
    """The files of jina-embeddings-v5, with those of the adapter that is asked for; none where all are to be there."""
    places = adapter_places(folder)
    tasks = [place.name for place in places]
    task = _asked_task(config)
    if not tasks:
        raise CheckpointError(f"{folder}: there are no adapters in {folder / FOLDER}; download it again")
    if not task:
        return
    if task not in tasks:
        raise CheckpointError(
            f"{folder}: lora_task {task!r} is not one of the checkpoint's adapters: {', '.join(tasks)}; leave it out, "
            "and each request chooses one"
        )
    logger.info("%s: the adapter of %s is added", folder, task)
    yield from ((entry.name, entry) for entry in folder.iterdir() if entry.name != FOLDER)
    yield from ((entry.name, entry) for entry in places[tasks.index(task)].iterdir())


def _asked_task(config: EngineConfig) -> str:
    """`lora_task` of the overrides; whoever reads them all complains of what is no JSON."""
    try:
        overrides = json.loads(config.json_model_override_args or "{}")
    except ValueError:
        return ""
    return str(overrides.get("lora_task", "")) if isinstance(overrides, dict) else ""
