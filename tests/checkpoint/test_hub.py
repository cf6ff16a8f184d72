"""`resolve` against a hub on loopback: what is downloaded, what is not, and every way in which it can fail."""

import errno
import fnmatch
import logging
import re
import socket
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from rtp_llm.checkpoint import lora_modules, read_json
from rtp_llm.checkpoint.hub import resolve, wanted_files
from rtp_llm.config import EngineConfig
from rtp_llm.errors import CheckpointError
from tests.checkpoint.hub_server import Hub, Repository, serve

WEIGHTS = bytes(range(256)) * 4000
MODEL = {
    "config.json": b"{}",
    "vocab.txt": b"[PAD]\n",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"twice the same",
    "1_Pooling/config.json": b"{}",
    "2_Dense/pytorch_model.bin": b"the only copy",
    "artifact.metadata": b"{}",
    "sparse_linear.pt": b"head",
    "onnx/model.onnx": b"other",
    "onnx/config.json": b"{}",
    "openvino/openvino_model.bin": b"other",
    "tf_model.h5": b"other",
    "training_args.bin": b"pickle",
    "modeling.py": b"code",
    "README.md": b"# model",
}
NEEDED = [
    "1_Pooling/config.json", "2_Dense/pytorch_model.bin", "artifact.metadata", "config.json", "model.safetensors",
    "sparse_linear.pt",
    "vocab.txt",
]  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    repositories = {
        "org/model": Repository({"main": MODEL, "v2": {**MODEL, "config.json": b'{"v": 2}'}}),
        "org/pickled": Repository({"main": {"config.json": b"{}", "pytorch_model.bin": b"weights"}}),
        "org/private": Repository({"main": MODEL}, token="hf_secret"),
        "org/gated": Repository({"main": MODEL}, token="hf_secret", gated=True),
        "org/onnx": Repository(
            {"main": {"config.json": b"{}", "onnx/model.onnx": b"other"}}, card={"base_model": "org/model"}
        ),
    }
    with serve(repositories) as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def get(server: Hub, cache: Path, name: str = "org/model", **options: Any) -> Path:
    options = {"hf_endpoint": server.endpoint, "download_dir": str(cache), **options}
    return resolve(EngineConfig(checkpoint_path=name, **options), progress=False)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_downloads_what_is_read(hub: Hub, cache: Path) -> None:
    folder = get(hub, cache)
    assert files(folder) == NEEDED
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert read_json(folder, "config.json") == read_json(folder / "1_Pooling", "config.json") == {}


def test_pickled_weights_where_there_is_nothing_else(hub: Hub, cache: Path) -> None:
    assert files(get(hub, cache, "org/pickled")) == ["config.json", "pytorch_model.bin"]


def test_the_second_time_nothing_is_downloaded(hub: Hub, cache: Path) -> None:
    folder = get(hub, cache)
    hub.requests.clear()
    assert get(hub, cache) == folder and hub.downloaded() == []


@pytest.mark.parametrize("name", ["org/model", "org/pickled"])
def test_offline_uses_the_cache_alone(hub: Hub, cache: Path, name: str) -> None:
    folder = get(hub, cache, name)
    hub.requests.clear()
    assert get(hub, cache, name, hf_hub_offline=True) == folder and not hub.requests


def test_offline_without_a_copy(hub: Hub, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="not, or not completely, in the cache and hf_hub_offline is set"):
        get(hub, cache, hf_hub_offline=True)


def test_no_network_falls_back_on_the_cache(hub: Hub, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = get(hub, cache)
    assert get(hub, cache, hf_endpoint=closed_port()) == folder
    assert "using the copy in the cache" in caplog.text


def test_no_network_and_no_copy(cache: Path) -> None:
    with pytest.raises(
        CheckpointError, match="org/model cannot be downloaded from http.*check the network or hf_endpoint"
    ):
        get(Hub({}), cache, hf_endpoint=closed_port())


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def stalling(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that accepts and says nothing, and little patience with it."""
    monkeypatch.setattr("rtp_llm.checkpoint.hub._ANSWER_SECONDS", 0.3)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return hub


@pytest.mark.parametrize("stalls", ["/api/models/org/model", "/tree/", "GET .*/resolve/.*safetensors"])
def test_a_hub_that_stalls(stalling: Hub, cache: Path, stalls: str) -> None:
    stalling.stalls = stalls
    if stalls == "/tree/" and int(huggingface_hub.__version__.partition(".")[0]) < 2:
        pytest.skip("this version of the library asks for no tree")
    with pytest.raises(CheckpointError, match="org/model cannot be downloaded from http.*check the network"):
        get(stalling, cache)
    stalling.stalls = ""
    assert files(get(stalling, cache)) == NEEDED


def test_a_hub_that_stalls_leaves_the_cache(stalling: Hub, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = get(stalling, cache)
    stalling.stalls = "."
    assert get(stalling, cache) == folder
    # Whichever ends first, the request's own time or the time for all of it, which are the same.
    assert re.search(r"cannot be asked \((no answer within 0.3 seconds|timed out)\); using the copy", caplog.text)


def test_revision(hub: Hub, cache: Path) -> None:
    assert (get(hub, cache, revision="v2") / "config.json").read_bytes() == b'{"v": 2}'
    with pytest.raises(CheckpointError, match="org/model has no revision 'v3'"):
        get(hub, cache, revision="v3")


def test_private_repository_needs_its_token(hub: Hub, cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no repository org/private, or it is private: .*HF_TOKEN"):
        get(hub, cache, "org/private", hf_token="hf_wrong")
    assert files(get(hub, cache, "org/private", hf_token="hf_secret")) == NEEDED


def test_gated_repository(hub: Hub, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="org/gated is gated: accept its terms"):
        get(hub, cache, "org/gated")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/nothing", r"no repository org/nothing.*a folder would be '/.*/org/nothing', which does not exist"),
        (
            "org/onnx",
            r"org/onnx has no safetensors or pytorch_model.bin \(config.json, onnx/model.onnx\); other formats are not "
            "read, ONNX among them: serve the checkpoint that they were made from, which is org/model by its model",
        ),
        ("/no/such/folder", "there is no folder '/no/such/folder'"),
        ("./folder", "there is no folder '/.*folder'"),
        ("~/no_such_folder", "there is no folder"),
        ("models/bert/base", "there is no folder '/.*models/bert/base'"),
        ("", "there is no folder"),
        ("a b", "'a b' is neither a folder nor a hub id"),
        ("a/b\n", "is neither a folder nor a hub id"),
        ("-x/y", "is neither a folder nor a hub id"),
        ("a--b/c..d", "is not a hub id"),
    ],
)
def test_names_that_lead_nowhere(hub: Hub, cache: Path, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        get(hub, cache, name)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(EngineConfig(checkpoint_path=str(tmp_path))) == tmp_path
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        resolve(EngineConfig(checkpoint_path=str(tmp_path / "model.safetensors")))


@pytest.fixture
def breaking(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that hangs up in the middle of a file; the library writes as it reads, not every 10 MB."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.break_at = 1 << 19
    return hub


def test_a_broken_download_is_resumed(breaking: Hub, cache: Path) -> None:
    try:
        folder = get(breaking, cache)
    except CheckpointError:  # where the library leaves resuming to the next start
        folder = get(breaking, cache)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    requests = [asked for method, path, asked in breaking.requests if method == "GET" and path.endswith(".safetensors")]
    assert requests == [None, f"bytes={1 << 19}-"]


def test_a_failed_download_keeps_the_complete_files(breaking: Hub, cache: Path) -> None:
    breaking.refuse_range = True
    with pytest.raises(CheckpointError, match="start again, which keeps the files that are complete"):
        get(breaking, cache)
    with pytest.raises(CheckpointError, match="not completely"):
        get(breaking, cache, hf_hub_offline=True)
    breaking.refuse_range = False
    breaking.requests.clear()
    assert files(get(breaking, cache)) == NEEDED
    assert set(breaking.downloaded()) < {name.rpartition("/")[2] for name in NEEDED}


def test_a_full_disk(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match="the disk is full; free some space or set download_dir"):
        get(hub, cache)


def test_progress_is_logged_where_there_is_no_terminal(
    hub: Hub, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtp_llm.checkpoint.hub._LOG_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "rtp_llm")
    config = EngineConfig(checkpoint_path="org/model", hf_endpoint=hub.endpoint, download_dir=str(cache))
    resolve(config, progress=True)
    assert "org/model: " in caplog.text and " of 7.00 files" in caplog.text


def test_adapters_that_requests_choose_are_fetched(hub: Hub, cache: Path, tmp_path: Path) -> None:
    own = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights", "README.md": b"words"}
    hub.repositories = {**hub.repositories, "me/law": Repository({"main": own})}
    (tmp_path / "care").mkdir()
    (tmp_path / "care" / "adapter_config.json").write_text("{}")
    modules = ("law=me/law", f"care={tmp_path / 'care'}")
    options: dict[str, Any] = {"hf_endpoint": hub.endpoint, "download_dir": str(cache)}
    found = lora_modules(EngineConfig(checkpoint_path="org/model", revision="v2", lora_modules=modules, **options))
    assert list(found) == ["law", "care"] and found["care"] == tmp_path / "care"
    assert files(found["law"]) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(CheckpointError, match="lora_modules: law: .* has no repository me/nobody"):
        lora_modules(EngineConfig(checkpoint_path="org/model", lora_modules=("law=me/nobody",), **options))


def test_wanted_files_of_shards() -> None:
    names = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model-00001-of-00002.bin"]
    assert wanted_files(names) == names[:2]
    assert wanted_files(["consolidated.00.safetensors", "optimizer.pt", *names[2:]]) == names[2:]


def test_wanted_files_have_the_chat_template() -> None:
    names = ["chat_template.jinja", "config.json", "model.safetensors"]
    assert wanted_files(names) == names


def test_modelscope_is_an_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(CheckpointError, match=r"pip install rtp-llm\[modelscope\]"):
        get(Hub({}), cache, hub="modelscope")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_modelscope(cache: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    def snapshot_download(name: str, *, allow_patterns: list[str], cache_dir: str, **options: Any) -> str:
        assert (name, options["revision"], options["local_files_only"]) == ("org/model", "v1", False)
        folder = Path(cache_dir)
        folder.mkdir(exist_ok=True)
        if any(Path(weights).match(pattern) for pattern in allow_patterns):
            (folder / weights).touch()
        return str(folder)

    module = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "modelscope", module)
    assert files(get(Hub({}), cache, hub="modelscope", revision="v1")) == [weights]


@pytest.mark.parametrize("safe", ["2_Dense/model.safetensors", "model.safetensors"])
def test_modelscope_has_pickles_where_no_safetensors_are(
    safe: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model beside a module's folder, one with safetensors and one with a pickle alone."""
    pickles = {"pytorch_model.bin", "2_Dense/pytorch_model.bin"}
    contents = dict.fromkeys([safe, *pickles], "") | {"config.json": '{"model_type": "bert"}'}
    contents["2_Dense/config.json"] = '{"in_features": 4}'

    def snapshot_download(name: str, *, allow_patterns: list[str], cache_dir: str, **options: Any) -> str:
        for path, text in contents.items():
            if any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns):
                (Path(cache_dir) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(cache_dir) / path).write_text(text)
        return cache_dir

    monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace(snapshot_download=snapshot_download))
    needed = pickles - {safe.replace("model.safetensors", "pytorch_model.bin")}
    wanted = {safe, *needed, "config.json", "2_Dense/config.json"}
    assert set(files(get(Hub({}), cache, hub="modelscope"))) == wanted


def test_modelscope_without_an_answer(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def snapshot_download(name: str, *, local_files_only: bool, cache_dir: str, **options: Any) -> str:
        if not local_files_only:
            raise TimeoutError("read timed out")
        return cache_dir

    monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace(snapshot_download=snapshot_download))
    cache.mkdir()
    (cache / "model.safetensors").touch()
    assert get(Hub({}), cache, hub="modelscope") == cache
    assert "read timed out); using the copy in the cache" in caplog.text


def test_modelscope_errors(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, **options: Any) -> str:
        if name == "org/empty":
            cache.mkdir(exist_ok=True)
            return str(cache)
        raise ValueError("not found")

    monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(CheckpointError, match="cannot be had from modelscope: ValueError: not found"):
        get(Hub({}), cache, hub="modelscope")
    with pytest.raises(CheckpointError, match="org/empty on modelscope has no safetensors"):
        get(Hub({}), cache, "org/empty", hub="modelscope")
