"""The reader of torch.save's files against torch, then the files that would do harm."""

import collections
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtp_llm.checkpoint import TensorInfo, open_file, open_tensors
from rtp_llm.errors import CheckpointError

HEADER = b"\x80\x02"


def write(
    path: Path, program: bytes, entries: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    """An archive like torch's, with any program as its data.pkl."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {"data.pkl": program, "byteorder": b"little", **(entries or {"data/0": bytes(64)})}.items():
            archive.writestr(f"archive/{name}", data)
    return path


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    shape: tuple[int, ...] = (2,), strides: tuple[int, ...] = (1,), offset: int = 0, size: int = 16, key: bytes = b"0"
) -> bytes:
    """The pickle program of a dictionary with one fp32 tensor, x."""
    text = b"X" + struct.pack("<I", len(key)) + key
    storage = b"(X\x07\x00\x00\x00storage" + name_of("torch", "FloatStorage") + text + text + number(size) + b"tQ"
    call = b"(" + storage + number(offset) + sizes(shape) + sizes(strides) + b"\x89Nt"
    return HEADER + b"}X\x01\x00\x00\x00x" + name_of("torch._utils", "_rebuild_tensor_v2") + call + b"Rs."


def state_dict() -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    tensors = collections.OrderedDict(
        matrix=torch.randn(3, 4),
        transposed=torch.randn(4, 3).t(),
        half=torch.randn(5).half(),
        bf16=torch.randn(2, 2).bfloat16(),
        double=torch.randn(3).double(),
        ids=torch.arange(5),
        flags=torch.tensor([True, False]),
        parameter=torch.nn.Parameter(torch.randn(3)),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
    )
    tensors["view"] = tensors["matrix"][1:, ::2]
    vars(tensors)["_metadata"] = {"": {"version": 1}}
    return tensors


@pytest.mark.parametrize("zipped", [True, False])
def test_equals_torch(tmp_path: Path, zipped: bool) -> None:
    torch, expected = pytest.importorskip("torch"), state_dict()
    torch.save(expected, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    source = open_tensors(tmp_path)
    assert list(source.tensors) == list(expected)
    for name, values in expected.items():
        read = source.read(name)
        np.testing.assert_array_equal(read, values.detach().float().numpy())
        assert read.dtype == np.float32 and read.shape == tuple(values.shape) and read.flags.c_contiguous
    source.close()


def test_a_program_of_ours_is_read(tmp_path: Path) -> None:
    data = struct.pack("<16f", *range(16))
    source = open_file(write(tmp_path / "a.pt", tensor((2, 3), (6, 2), 1), {"data/0": data}))
    assert source.tensors == {"x": TensorInfo("fp32", (2, 3))}
    assert source.read("x").tolist() == [[1, 3, 5], [7, 9, 11]]


def test_torch_is_not_imported(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = write(tmp_path / "a.pt", tensor())
    code = (
        "import sys; from pathlib import Path; from rtp_llm.checkpoint import open_file; "
        f"open_file(Path({str(path)!r})).read('x'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Attack:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (Attack(os.system, "touch pwned"), f"{os.system.__module__}.system"),
        (Attack(eval, "1"), r"(__builtin__|builtins)\.eval"),
        (Attack(getattr, 1, "real"), r"(__builtin__|builtins)\.getattr"),
        (Attack(bytearray, 10), r"(__builtin__|builtins)\.bytearray"),
        (Attack(collections.Counter, "a"), r"collections\.Counter"),
        (np.float32, r"numpy\.float32"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, attack: Any, name: str, protocol: int, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.bin", pickle.dumps({"x": attack}, protocol))
    with pytest.raises(CheckpointError, match=rf"a\.bin: the name {name} is refused, .*convert it to safetensors"):
        open_file(path)
    assert not (tmp_path / "pwned").exists()


def test_legacy_files_refuse_them_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"x": Attack(os.system, "exit 1")}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"the name \w+\.system is refused"):
        open_file(tmp_path / "a.bin")


REBUILD = name_of("torch._utils", "_rebuild_tensor_v2")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (HEADER + b"\x82\x01.", "pickle opcode EXT1 is refused"),
        (HEADER + b"(i__builtin__\neval\n.", "pickle opcode INST is refused"),
        (HEADER + b"\x97.", "pickle opcode NEXT_BUFFER is refused"),
        (HEADER + REBUILD + b")\x81.", "pickle opcode NEWOBJ is refused"),
        (HEADER + b"Nr\xff\xff\xff\xff.", "pickle memo index 4294967295 is refused"),
        (HEADER + b"p4000000000\n.", "damaged|memo index"),
        (HEADER + REBUILD + b"}X\x08\x00\x00\x00__code__Nsb.", "sets attributes of _rebuild_tensor_v2"),
        (HEADER + REBUILD + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b.", "sets attributes of _rebuild_tensor_v2"),
        (HEADER + b"\x80\x04\x8c\x05torch\x8c\x11_utils.os.system.\x93.", "damaged|the name"),
        (b"\x80\x04\x8c\x0btorch._utils\x8c\x02os\x93.", "damaged|the name"),
        (HEADER + b"K\x01.", "holds a int, a dictionary of tensors is needed"),
        (HEADER + b"}K\x01K\x02s.", "entry 1 is a int, tensors are needed"),
        (HEADER + b"}X\x01\x00\x00\x00xK\x02s.", "entry 'x' is a int, tensors are needed"),
        (HEADER + REBUILD + b"K\x01K\x02\x86R.", "damaged or not a file of torch.save"),
        (HEADER + b"K\x01Q.", "damaged or not a file of torch.save"),
        (HEADER + b"(X\x07\x00\x00\x00storageK\x01K\x01K\x01K\x01tQ.", "an unknown kind of storage"),
        (b"", "damaged or not a file of torch.save"),
        (b".", "damaged or not a file of torch.save"),
        (HEADER, "damaged or not a file of torch.save"),
        (HEADER + b"X\xff\xff\xff\x7fabc.", "damaged or not a file of torch.save"),
    ],
)
def test_programs_that_are_refused(tmp_path: Path, program: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_file(write(tmp_path / "a.pt", program))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (17,)}, "reaches outside its storage of 16"),
        ({"shape": (8,), "offset": 9}, "reaches outside"),
        ({"shape": (2,), "strides": (16,)}, "reaches outside"),
        ({"shape": (1 << 40, 1 << 40), "strides": (0, 0)}, "reaches outside"),
        ({"shape": (17,), "strides": (0,)}, "reaches outside"),
        ({"shape": (2,), "offset": -1}, "is not made of a storage and sizes"),
        ({"shape": (2,), "strides": (-1,), "offset": 4}, "is not made of a storage and sizes"),
        ({"shape": (-2,)}, "is not made of a storage and sizes"),
        ({"shape": (2, 2)}, r"has shape \(2, 2\) and strides \(1,\)"),
        ({"shape": (1,) * 9, "strides": (1,) * 9}, "has shape"),
        ({"size": 17}, "storage '0' is cut short"),
        ({"size": 1 << 62}, "storage '0' is cut short"),
        ({"size": -1}, "storage '0' of -1 elements"),
        ({"key": b"1"}, "storage '1' is missing"),
    ],
)
def test_tensors_outside_their_storage(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_file(write(tmp_path / "a.pt", tensor(**options)))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"byteorder": b"big"}, "a big-endian checkpoint is refused"),
        ({"sub/data.pkl": b""}, "2 data.pkl in the archive is refused"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, entries: dict[str, bytes], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_file(write(tmp_path / "a.pt", tensor(), entries))


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", tensor(), {"data/0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(CheckpointError, match="a compressed entry, archive/.*; torch.save never compresses is refused"):
        open_file(path)


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"hello"])
def test_files_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="a.bin is (empty|damaged or not a file of torch.save)"):
        open_file(tmp_path / "a.bin")


def saved(zipped: bool) -> bytes:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save(state_dict(), stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


# A damaged byte may be taken for a quoted string, and Python's own parser warns of its escapes before it is refused.
@pytest.mark.filterwarnings(r"ignore:invalid (octal )?escape sequence:DeprecationWarning")
@pytest.mark.parametrize("zipped", [True, False])
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 0.999), byte=st.integers(0, 255), kept=st.floats(0.5, 1))
def test_damage_is_an_error_and_no_crash(tmp_path: Path, zipped: bool, position: float, byte: int, kept: float) -> None:
    original = tmp_path / "original"
    if not original.exists():
        original.write_bytes(saved(zipped))
    content = bytearray(original.read_bytes())
    content[int(position * len(content))] = byte
    path = tmp_path / "damaged.bin"
    path.write_bytes(content if kept > 0.6 else content[: int(kept * len(content))])
    try:
        source = open_file(path)
        for name in source.tensors:
            source.read(name)
    except CheckpointError as error:
        assert "damaged.bin" in error.message
