"""Paths that leave a checkpoint's folder are refused; JSON files are read as untrusted input."""

import os
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.checkpoint import inside, read_json, read_json_list
from rtp_llm.errors import CheckpointError


@pytest.mark.parametrize("relative", ["", "a.json", "1_Pooling/config.json", "./a", "a//b", "..a", "not there"])
def test_inside(tmp_path: Path, relative: str) -> None:
    assert inside(tmp_path, relative) == tmp_path / relative


@pytest.mark.parametrize("relative", ["..", "../x", "a/../../x", "/etc/passwd", "\\..\\x", "a\\..\\x", "C:\\x", "a\0b"])
def test_outside(tmp_path: Path, relative: str) -> None:
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        inside(tmp_path, relative)


def test_links(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").touch()
    (folder / "same.json").symlink_to("config.json")
    (folder / "out.json").symlink_to("/etc/passwd")
    (folder / "module").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(folder)
    assert inside(folder, "same.json").is_file()
    assert inside(tmp_path / "link", "config.json").is_file()
    for name in ("out.json", "module/x"):
        with pytest.raises(CheckpointError, match="is a link to .*, outside the checkpoint; put the file itself there"):
            inside(folder, name)


def test_links_of_a_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--model"
    snapshot = repository / "snapshots" / "0123"
    (snapshot / "1_Pooling").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_text("{}")
    (repository / "secret").touch()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "shared").touch()
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/abc")
    (snapshot / "weights").symlink_to("../../../blobs/shared")
    (snapshot / "bad").symlink_to("../../secret")
    assert read_json(snapshot, "config.json") == {} == read_json(snapshot / "1_Pooling", "config.json")
    assert inside(snapshot, "weights").is_file()
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        inside(snapshot, "bad")


def test_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"é": [1]}', encoding="utf-8")
    (tmp_path / "b.json").write_text('[{"idx": 0}]')
    assert read_json(tmp_path, "a.json") == {"é": [1]}
    assert read_json_list(tmp_path, "b.json") == [{"idx": 0}]
    assert read_json(tmp_path, "c.json", required=False) == {}
    assert read_json_list(tmp_path, "c.json", required=False) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "a.json is not JSON"),
        (b"", "a.json is not JSON"),
        (b'{"a": "\xff"}', "a.json is not JSON"),
        (b"[" * 100_000, "a.json is not JSON"),
        (b"[]", "holds a JSON list, an object is needed"),
        (b"1", "holds a JSON number, an object is needed"),
        (b"null", "holds a JSON null, an object is needed"),
    ],
)
def test_json_that_is_not_an_object(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path, "a.json")


@pytest.mark.parametrize("content", ["{}", "[1]", "true", '"x"'])
def test_json_that_is_not_a_list_of_objects(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CheckpointError, match="a list of objects is needed"):
        read_json_list(tmp_path, "a.json")


def test_json_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"a\.json is missing$"):
        read_json(tmp_path, "a.json")
    with pytest.raises(CheckpointError, match=r"a\.json is missing; .*/no is not a folder"):
        read_json(tmp_path / "no", "a.json")
    with (tmp_path / "a.json").open("wb") as file:
        os.truncate(file.fileno(), (64 << 20) + 1)
    with pytest.raises(CheckpointError, match="67,108,865 bytes is too large, the limit is 67,108,864"):
        read_json(tmp_path, "a.json")

    def fail(path: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "b.json").touch()
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(CheckpointError, match=r"b\.json cannot be read: Permission denied"):
        read_json(tmp_path, "b.json")
