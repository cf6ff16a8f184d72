"""The checkpoint as the flags change it, on disk, so that the authors' code reads what we read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rtp_llm.adapter_head import labelling_class
from rtp_llm.config import EngineConfig
from rtp_llm.model_config import ModelConfig

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "added_tokens.json", "chat_template.json", "chat_template.jinja",
)  # fmt: skip


@contextmanager
def overlaid(model_config: ModelConfig, config: EngineConfig) -> Iterator[Path]:
    """The checkpoint's folder; where a flag stands over its files, a temporary folder of links with those replaced."""
    replaced = _replaced(model_config, config)
    if not replaced:
        yield model_config.folder
        return
    with TemporaryDirectory(prefix="rtp_llm_verify_") as name:
        root = Path(name)
        _link(model_config.folder, root)
        target = root / model_config.transformer_folder.relative_to(model_config.folder)
        if target != root:
            target.unlink()
            target.mkdir()
            _link(model_config.transformer_folder, target)
        for file, content in replaced.items():
            (target / file).unlink(missing_ok=True)
            if content is not None:
                (target / file).write_bytes(content)
        yield root


def _link(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        (target / entry.name).symlink_to(entry.absolute())


def _replaced(model_config: ModelConfig, config: EngineConfig) -> dict[str, bytes | None]:
    """File -> its content, or None where it must not be there."""
    files: dict[str, bytes | None] = {}
    if config.tokenizer_path:
        folder = Path(config.tokenizer_path).expanduser()
        paths = {name: folder / name for name in _TOKENIZER_FILES}
        files |= {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()}
    changes: dict[str, Any] = {"is_causal": False} if config.model_type == "qwen_2_embedding" else {}
    if config.json_model_override_args or changes or labelling_class(model_config.transformer_folder):
        files["config.json"] = json.dumps({**model_config.hf, **changes}).encode()
    return files
