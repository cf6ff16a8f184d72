"""Checkpoints with one file damaged, as bytes or as JSON: they load, or the error is a line that names the file.

`pytest -m slow` tries 4,000 of them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rtp_llm.config import ServerConfig
from rtp_llm.engine.loading import load_engine
from rtp_llm.errors import ConfigError
from tests.tasks.checkpoints import save_m3

pytest.importorskip("torch")

quick = settings(max_examples=60, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 0, 1, 2**31, 2**63, 1e300, 0.5, float("nan"), "", "\0", "../x", "/etc/passwd", "\ud800", [], {},
     [[]],
     [None], {"a": None}, "x" * 5000, [0] * 2000, "bert", "Unigram", "mean"]
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with most of the files that are read: safetensors, pickles, tokenizer, modules."""
    made = tmp_path_factory.mktemp("whole")
    save_m3(made)
    (made / "1_Pooling").mkdir()
    (made / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (made / "modules.json").write_text(json.dumps(modules))
    (made / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    (made / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "q: "}}))
    return made


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in children for found in places(child, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


def damaged(content: bytes, name: str, data: st.DataObject) -> bytes:
    if name.endswith(".json") and data.draw(st.integers(0, 3)):
        value = json.loads(content)
        path = data.draw(st.sampled_from(places(value)))
        return json.dumps(replaced(value, path, data.draw(ODD))).encode()
    head = data.draw(st.booleans())  # headers are at the start, and a zip's directory at the end
    near = st.integers(0, min(len(content), 400))
    cut = data.draw(near) if head else len(content) - data.draw(near)
    how = data.draw(st.sampled_from(["end", "flip", "insert", "drop"]))
    if how == "end":
        return content[:cut]
    noise = data.draw(st.binary(min_size=1, max_size=8))
    return content[:cut] + (b"" if how == "drop" else noise) + content[cut + (0 if how == "insert" else len(noise)) :]


def load(folder: Path) -> None:
    """What a start does; its requests are not part of this."""
    try:
        load_engine(ServerConfig(checkpoint_path=str(folder), backend="numpy"), "tiny").close()
    except ConfigError as error:
        assert "Traceback" not in error.message and error.message


def try_one(whole: Path, copy: Path, data: st.DataObject) -> None:
    shutil.copytree(whole, copy, dirs_exist_ok=True)
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(names))
    (copy / name).write_bytes(damaged((whole / name).read_bytes(), name, data))
    load(copy)


@quick
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_damaged_files(folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    try_one(folder, tmp_path_factory.getbasetemp() / "damaged", data)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(quick, max_examples=4_000)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_many_damaged_files(folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    try_one(folder, tmp_path_factory.getbasetemp() / "damaged", data)


def test_the_whole_one_loads(folder: Path) -> None:
    load_engine(ServerConfig(checkpoint_path=str(folder), backend="numpy"), "tiny").close()
