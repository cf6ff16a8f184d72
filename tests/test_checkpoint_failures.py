"""How a checkpoint that cannot be loaded is told, whatever is wrong with it: one line, and status 1 of a server."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from tests.real_server import launch
from tests.test_invalid_checkpoints import CASES, assert_in, error_of
from tests.test_invalid_checkpoints import folder as folder


def test_an_unforeseen_error_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("of several\nlines")

    monkeypatch.setattr("rtp_llm.engine.loading.load_runtime", fail)
    assert (
        error_of(folder) == f"{folder} cannot be loaded: ValueError: of several lines (--log_level debug shows where)"
    )


def test_a_file_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert_in("model.safetensors cannot be read: .*Permission denied", error_of(folder))


def test_weights_elsewhere_by_links(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for entry in folder.iterdir():
        (linked / entry.name).symlink_to(entry)
    with Model(str(linked), backend="numpy") as ours, Model(str(folder), backend="numpy") as same:
        assert np.array_equal(ours.embed("the weather"), same.embed("the weather"))
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to("gone")
    assert_in("/model.safetensors is a link to gone, which does not exist", error_of(linked))


@pytest.mark.parametrize("name", ["nan", "missing tensor", "data cut", "unknown architecture", "no tokenizer"])
def test_a_server_exits_with_1_and_one_line(name: str, folder: Path, tmp_path: Path) -> None:
    change, message = CASES[name]
    change(folder)
    process = launch([str(folder), "--port", "0", "--backend", "numpy"], tmp_path / "log")
    assert process.wait(60) == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert len([line for line in lines if " ERROR " in line]) == 1 and "Traceback" not in "".join(lines)
    assert_in(message, lines[-1])
