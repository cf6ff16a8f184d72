"""Paths that leave a checkpoint's folder are refused; JSON files are read as untrusted input."""

import os
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.checkpoint import find, inside, read_json, read_json_list
from rtp_llm.errors import CheckpointError


@pytest.mark.parametrize("relative", ["", "a.json", "1_Pooling/config.json", "./a", "a//b", "..a", "not there"])
def test_inside(tmp_path: Path, relative: str) -> None:
    assert inside(tmp_path, relative) == tmp_path / relative


@pytest.mark.parametrize("relative", ["..", "../x", "a/../../x", "/etc/passwd", "\\..\\x", "a\\..\\x", "C:\\x", "a\0b"])
def test_outside(tmp_path: Path, relative: str) -> None:
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        inside(tmp_path, relative)


def test_links_are_followed(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "model"
    (store / "1_Pooling").mkdir(parents=True)
    folder.mkdir()
    (store / "blob").write_text("{}")
    (store / "1_Pooling" / "config.json").write_text("{}")
    (folder / "config.json").symlink_to(store / "blob")
    (folder / "1_Pooling").symlink_to(store / "1_Pooling")
    (tmp_path / "link").symlink_to(folder)
    for root in (folder, tmp_path / "link"):
        assert read_json(root, "config.json") == {} == read_json(root / "1_Pooling", "config.json")


def test_a_snapshot_of_a_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--model"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    assert read_json(snapshot, "config.json") == {}


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "broken.json").symlink_to("nowhere")
    (tmp_path / "loop.json").symlink_to("loop.json")
    os.mkfifo(tmp_path / "pipe.json")
    assert find(tmp_path, "absent.json") is None and find(tmp_path / "absent", "a.json") is None
    expected = {
        "folder.json": r"folder\.json is a folder; a file is needed there",
        "pipe.json": r"pipe\.json is a device; a file is needed there",
        "broken.json": r"broken\.json is a link to nowhere, which does not exist",
        "loop.json": r"loop\.json cannot be read: Too many levels of symbolic links",
        "n" * 300: "cannot be read: File name too long",
    }
    for name, message in expected.items():
        with pytest.raises(CheckpointError, match=message):
            find(tmp_path, name)


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
