"""What read_model_config makes of a folder's files and the flags over them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import rtp_llm
from rtp_llm import Model, config_files
from rtp_llm.config import EngineConfig
from rtp_llm.errors import ConfigError
from rtp_llm.model_config import read_model_config, sequence_limit
from rtp_llm.models import find_model_type


def read(folder: Path, overrides: str) -> object:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "rope_scaling": None}))
    config = EngineConfig(checkpoint_path=str(folder), json_model_override_args=overrides)
    return read_model_config(folder, config).hf


def test_overrides_stand_over_config_json(tmp_path: Path) -> None:
    assert read(tmp_path, "") == {"model_type": "qwen2", "rope_scaling": None}
    scaling = {"type": "yarn", "factor": 4.0}
    assert read(tmp_path, json.dumps({"rope_scaling": scaling})) == {"model_type": "qwen2", "rope_scaling": scaling}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, 1e6),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_theta": 5e5}, None),
        ({"rope_parameters": {"rope_type": "default"}}, None),
        ({"rope_parameters": None}, None),
    ],
)
def test_a_rope_that_is_stretched_by_the_flag_keeps_its_theta(
    own: dict[str, object], expected: float | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", **own}))
    overrides = json.dumps({"rope_scaling": {"type": "linear", "factor": 2.0}})
    config = EngineConfig(checkpoint_path=str(tmp_path), json_model_override_args=overrides)
    assert read_model_config(tmp_path, config).hf["rope_scaling"].get("rope_theta") == expected


@pytest.mark.parametrize(
    ("hf", "flag", "expected"),
    [
        ({"model_type": "bert", "position_embedding_type": "alibi"}, "auto", "jina_bert"),
        ({"architectures": ["BertModel"], "position_embedding_type": "alibi"}, "auto", "jina_bert"),
        ({"architectures": ["JinaBertForMaskedLM"]}, "auto", "jina_bert"),
        ({"model_type": "xlm-roberta", "position_embedding_type": "rotary"}, "auto", "jina_embeddings_v3"),
        ({"model_type": "gpt2", "position_embedding_type": "alibi"}, "bert", "jina_bert"),
        ({"model_type": "qwen2"}, "qwen_2_embedding", "qwen_2_embedding"),
        ({"model_type": "bert", "position_embedding_type": "absolute"}, "auto", "bert"),
    ],
)
def test_the_type_is_that_of_the_model_that_is_loaded(
    hf: dict[str, object], flag: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf))
    config = EngineConfig(checkpoint_path=str(tmp_path), model_type=flag)
    assert read_model_config(tmp_path, config).model_type == find_model_type(flag, hf) == expected


@pytest.mark.parametrize("overrides", ["{", "[1]", "yarn"])
def test_overrides_that_are_no_object_are_named(overrides: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="json_model_override_args: .* is not") as caught:
        read(tmp_path, overrides)
    assert caught.value.param == "json_model_override_args"


def test_a_wrong_value_over_config_json_is_the_options_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="json_model_override_args: num_labels is 'two'; a whole number") as caught:
        read(tmp_path, '{"num_labels": "two"}')
    assert caught.value.param == "json_model_override_args"


@pytest.mark.parametrize(
    ("flag", "asked", "is_hard", "limit", "warning"),
    [
        (0, None, True, 64, ""),
        (0, None, False, 64, ""),
        (0, 32, False, 32, ""),
        (0, 400, True, 64, "max_seq_length 400 of the checkpoint: the model has 64 positions, which is the limit"),
        (0, 400, False, 400, "inputs up to 400 tokens: more than the 64 that the model was made for"),
        (500, 400, False, 500, "inputs up to 500 tokens: more than the 64"),
        (50, 400, False, 50, ""),
        (50, 400, True, 50, ""),
    ],
)
def test_sequence_limit(
    flag: int, asked: int | None, is_hard: bool, limit: int, warning: str, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": asked}))
    config = EngineConfig(checkpoint_path=str(tmp_path), max_seq_len=flag)
    model_config = read_model_config(tmp_path, config)
    assert sequence_limit(config, model_config, 64, 1 << 30, is_hard=is_hard) == limit
    assert [record.message[: len(warning)] for record in caplog.records] == [warning] * bool(warning)


def test_settings_over_config_json_are_heeded(tiny_bert: Path, tmp_path: Path) -> None:
    """Those of sentence_bert_config.json, as sentence-transformers hands them on."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    path = folder / "sentence_bert_config.json"
    own = {"config_kwargs": {"hidden_act": "relu"}, "processor_kwargs": {"model_max_length": 9}}
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **own}))
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(["a " * 20])
    with Model(str(folder), backend="numpy") as model:
        assert model.info.max_seq_len == 9
        assert np.abs(model.embed(["a " * 20]) - theirs).max() <= 1e-5


def test_learnt_positions_have_an_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    config = EngineConfig(checkpoint_path=str(tmp_path), max_seq_len=65)
    with pytest.raises(ConfigError, match="65 is more than the 64 positions"):
        sequence_limit(config, read_model_config(tmp_path, config), 64, 1 << 30)


def test_every_key_that_is_read_has_a_kind() -> None:
    """What is not among the kinds would be read unchecked, and a wrong value be a traceback."""
    package = Path(rtp_llm.__file__).parent
    sources = [file.read_text() for folder in ("models", "tasks", ".") for file in (package / folder).glob("*.py")]
    read_keys = {key for source in sources for key in re.findall(r'\bhf(?:\.get\(|\[)"(\w+)"', source)}
    assert len(read_keys) > 50
    assert read_keys - config_files.MODEL.keys() == set()
