"""The safetensors reader against the library's writer, then everything that a file can have wrong."""

import gc
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtp_llm.checkpoint import TensorInfo, open_file, open_tensors
from rtp_llm.errors import CheckpointError

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([1.5, -2, 65504], np.float16),
    "double": np.array([0.1, 1e300]),
    "ids": np.arange(7),
    "flags": np.array([True, False]),
    "scalar": np.array(3.0, np.float32),
    "empty": np.zeros((0, 5), np.float32),
}


def write(path: Path, header: Any, data: bytes = b"", num_bytes: int | None = None) -> Path:
    """A file with any header over any data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b"" if isinstance(header, bytes) else b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text) if num_bytes is None else num_bytes) + text + data)
    return path


def entry(start: int, stop: int, shape: Any = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    numpy_format = pytest.importorskip("safetensors.numpy")
    numpy_format.save_file(ARRAYS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_equals_what_was_saved(saved: Path) -> None:
    source = open_tensors(saved)
    assert source.tensors["half"] == TensorInfo("fp16", (3,)) and set(source.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        with np.errstate(over="ignore"):
            expected = array.astype(np.float32)
        read = source.read(name)
        np.testing.assert_array_equal(read, expected)
        assert read.dtype == np.float32 and read.shape == array.shape and read.flags.c_contiguous and read.flags.aligned


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_row_alone(dtype: str, suffix: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {"first": torch.zeros(3), "matrix": torch.randn(5, 7).to(getattr(torch, dtype))}
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        tensors["matrix"] = torch.randn(7, 5).to(getattr(torch, dtype)).T
        torch.save(tensors, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(tensors, path)
    source = open_file(path)
    for row in range(5):
        (alone,) = source.read_part("matrix", 0, row, row + 1)
        np.testing.assert_array_equal(alone, tensors["matrix"][row].float().numpy())


def test_bf16_is_exact(tmp_path: Path) -> None:
    values = np.array([1.0, -0.5, np.inf, 3.140625, 0.0], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    path = write(tmp_path / "a.safetensors", {"x": entry(0, 10, [5], "BF16")}, halves)
    np.testing.assert_array_equal(open_file(path).read("x"), values)


def test_fp32_is_not_copied(saved: Path) -> None:
    source = open_tensors(saved)
    first, second = source.read("matrix"), source.read("matrix")
    assert not first.flags.owndata and not first.flags.writeable
    assert first.ctypes.data == second.ctypes.data


def test_an_odd_header_is_no_trouble(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.safetensors", b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} ', struct.pack("<f", 2.5)
    )
    read = open_file(path).read("x")
    assert read.flags.aligned and read.tolist() == [2.5]


def resident(path: Path) -> int:
    """kB of the file that this process has in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    sizes = [next(line for line in lines if line.startswith("Rss:")) for line in lines if line.endswith(str(path))]
    return sum(int(line.split()[1]) for line in sizes)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_pages_are_released(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"x": entry(0, 4 << 20)}, bytes(4 << 20))
    source = open_tensors(tmp_path)
    view = source.read("x")
    assert view.sum() == 0 and resident(path) >= 4096
    source.close()
    assert resident(path) == 0
    assert view.sum() == 0 and resident(path) >= 4096
    del view, source
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


def shards(folder: Path) -> Path:
    write(folder / "a.safetensors", {"x": entry(0, 8)}, struct.pack("<2f", 1, 2))
    write(folder / "b.safetensors", {"y": entry(0, 4)}, struct.pack("<f", 3))
    index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards(tmp_path: Path) -> None:
    source = open_tensors(shards(tmp_path))
    assert source.read("x").tolist() == [1, 2] and source.read("y").tolist() == [3]
    assert source.tensors == {"x": TensorInfo("fp32", (2,)), "y": TensorInfo("fp32", (1,))}
    source.close()


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"x": "c.safetensors"}, r"c\.safetensors is missing, but model\.safetensors\.index\.json names it"),
        ({"z": "a.safetensors"}, r"a\.safetensors: no tensor 'z'"),
        ({"x": "../a.safetensors"}, "leads out of the folder"),
        ({"x": "/etc/passwd"}, "leads out of the folder"),
        ({"x": "a.safetensors", "y": "twice.safetensors"}, "is in both"),
        ({"x": 1}, "no weight_map"),
        ([], "no weight_map"),
        (None, "no weight_map"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, weight_map: Any, message: str) -> None:
    write(shards(tmp_path) / "twice.safetensors", {"x": entry(0, 4), "y": entry(4, 8)}, bytes(8))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model.safetensors, pytorch_model.bin or index of one;"):
        open_tensors(tmp_path)
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(CheckpointError, match=r"\(there is tf_model\.h5\); other formats are not read"):
        open_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        open_tensors(tmp_path / "no")
    with pytest.raises(CheckpointError, match="x.pt is missing"):
        open_file(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"x": entry(0, 12)}, "is cut short: tensor 'x' ends at 12 of 8 bytes"),
        ({"x": entry(0, 4)}, "4 bytes after the last tensor"),
        ({}, "8 bytes after the last tensor"),
        ({"x": entry(0, 8), "y": entry(4, 8)}, "tensor 'y' begins at 4, not at 8"),
        ({"x": entry(0, 8), "y": entry(0, 8)}, "tensor 'y' begins at 0, not at 8"),
        ({"x": entry(4, 8)}, "tensor 'x' begins at 4, not at 0"),
        ({"x": entry(0, 8, [3])}, r"tensor 'x' \[3\] needs 12 bytes and has 8"),
        ({"x": entry(0, 8, [2**40, 2**40])}, "needs 4835703278458516698824704 bytes"),
        ({"x": entry(8, 0, [2])}, "needs 8 bytes and has -8"),
        ({"x": entry(0, 8, [-2])}, "no valid shape and data_offsets"),
        ({"x": entry(0, 8, [2.0])}, "no valid shape and data_offsets"),
        ({"x": entry(0, 8, "2")}, "no valid shape and data_offsets"),
        ({"x": {**entry(0, 8), "data_offsets": [0]}}, "no valid shape and data_offsets"),
        ({"x": 1}, "no valid shape and data_offsets"),
        ({"x": entry(0, 8, [2], "C64")}, "has dtype 'C64'; known are F64"),
        ([], "its header is not a JSON object"),
        (b"{", "its header is not JSON"),
        (b'{"x":1,"x":1}', "a name occurs twice"),
        (b"[" * 100_000, "its header is not JSON"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, header: Any, message: str) -> None:
    write(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(CheckpointError, match=message) as raised:
        open_tensors(tmp_path)
    assert "model.safetensors" in raised.value.message


@pytest.mark.parametrize("num_bytes", [2**63, 2**64 - 1, 200_000_000, 100])
def test_a_header_longer_than_the_file(tmp_path: Path, num_bytes: int) -> None:
    write(tmp_path / "model.safetensors", {}, num_bytes=num_bytes)
    with pytest.raises(CheckpointError, match="a header of .* bytes in a file of 16"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("size", "message"), [(0, "is empty"), (1, "is cut short"), (7, "is cut short"), (30, "header")]
)
def test_a_file_cut_short(saved: Path, size: int, message: str) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=message):
        open_tensors(saved)


def test_fp8_is_refused_when_read(tmp_path: Path) -> None:
    source = open_file(write(tmp_path / "a.safetensors", {"x": entry(0, 4, [4], "F8_E4M3")}, bytes(4)))
    with pytest.raises(CheckpointError, match="fp8_e4m3 weights are not read; use an fp32, fp16 or bf16 checkpoint"):
        source.read("x")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_damage_is_an_error_and_no_crash(saved: Path, position: int, byte: int, cut: int) -> None:
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[min(position, len(content) - 1)] = byte
    path = saved / "damaged.safetensors"
    path.write_bytes(content[: len(content) - cut])
    try:
        source = open_file(path)
        for name in source.tensors:
            source.read(name)
    except CheckpointError as error:
        assert "damaged.safetensors" in error.message


def test_the_real_one(minilm: Path) -> None:
    source = open_tensors(minilm)
    assert source.tensors["embeddings.word_embeddings.weight"] == TensorInfo("fp32", (30522, 384))
    assert np.isfinite(source.read("encoder.layer.5.output.dense.weight")).all()
