"""What read_model_config makes of a folder's files and the flags over them."""

import json
from pathlib import Path

import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.errors import ConfigError
from rtp_llm.model_config import read_model_config


def read(folder: Path, overrides: str) -> object:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "rope_scaling": None}))
    config = EngineConfig(checkpoint_path=str(folder), json_model_override_args=overrides)
    return read_model_config(folder, config).hf


def test_overrides_stand_over_config_json(tmp_path: Path) -> None:
    assert read(tmp_path, "") == {"model_type": "qwen2", "rope_scaling": None}
    scaling = {"type": "yarn", "factor": 4.0}
    assert read(tmp_path, json.dumps({"rope_scaling": scaling})) == {"model_type": "qwen2", "rope_scaling": scaling}


@pytest.mark.parametrize("overrides", ["{", "[1]", "yarn"])
def test_overrides_that_are_no_object_are_named(overrides: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="json_model_override_args: .* is not"):
        read(tmp_path, overrides)
