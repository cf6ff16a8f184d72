"""The files of a quantised checkpoint: weights tensor by tensor, the note in config.json, and the rest copied."""

import json
import shutil
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtp_llm.checkpoint import SCALE, TensorSource
from rtp_llm.ops.int8 import quantize_weight

# Weights in any of their forms: what is quantised instead of copied, and exports that would no longer fit.
_WEIGHTS = (
    "model*.safetensors*", "pytorch_model*.bin*", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
    "adapter_config.json", "adapter_model.*",
)  # fmt: skip
_EXPORTS = ("onnx", "openvino", "coreml", ".git", ".cache")
_DTYPES = {"fp64": "F32", "fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor of the file, and how its bytes are made."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    make: Callable[[], NDArray[Any]]


@contextmanager
def whole_folder(target: Path) -> Iterator[None]:
    """`target`, not there or empty, is made at once, and is as it was where the body fails; an OSError names it."""
    was_there = target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException as error:
        for path in target.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not was_there:
            target.rmdir()
        if isinstance(error, OSError) and error.errno is not None and not error.filename:
            raise OSError(error.errno, error.strerror, str(target)) from None
        raise


def copy_files(folder: Path, transformer_folder: Path, target: Path) -> Path:
    """Everything but the model's weights -> the folder in `target` where those belong."""
    relative = transformer_folder.relative_to(folder)

    def left_out(place: str, names: list[str]) -> set[str]:
        out = set(shutil.ignore_patterns(*_EXPORTS)(place, names))
        if Path(place) == transformer_folder:
            out |= set(shutil.ignore_patterns(*_WEIGHTS)(place, names))
        if Path(place).resolve() == target.resolve().parent:
            out.add(target.resolve().name)
        return out

    try:
        shutil.copytree(folder, target, ignore=left_out, dirs_exist_ok=True)
    except shutil.Error as error:
        # Its text is a list of all files that could not be copied.
        _, path, reason = error.args[0][0]
        raise OSError(f"{path}: {reason}") from None
    return target / relative


def write_weights(
    source: TensorSource, quantized: Collection[str], path: Path, on_written: Callable[[int], None],
    fitting_pairs: bool = False,
) -> None:  # fmt: skip
    """`source` with these tensors [N, K] in 8 bits; others keep their dtype. `on_written` is told bytes.

    With `fitting_pairs` as the kernels want them that add products in pairs, so that loading need not round again.
    Buffers of whole numbers are left out: loading does not read them.
    """
    entries = _entries(source, frozenset(quantized), fitting_pairs)
    with path.open("wb") as file:
        file.write(_header(entries))
        for entry in entries:
            data = entry.make()
            assert data.nbytes == entry.num_bytes, (entry.name, data.nbytes)
            file.write(data.tobytes())
            source.close()
            on_written(entry.num_bytes)


def write_config(folder: Path, kept: Sequence[str]) -> None:
    """Note in config.json what the weights are, as compressed-tensors says it; `kept`: modules in fp32."""
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False,
                },
                "input_activations": {
                    "num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True,
                },
            }
        },
        "ignore": list(kept),
    }  # fmt: skip
    path.unlink()  # it may be a link into a hub's cache
    path.write_text(json.dumps(config, indent=2) + "\n")


def _entries(source: TensorSource, quantized: frozenset[str], fitting_pairs: bool) -> list[_Entry]:
    """Wider numbers first, so that every tensor begins at a multiple of its numbers' size."""
    entries = []
    for name, info in source.tensors.items():
        if name in quantized:
            entries += _quantized(source, name, info.shape, fitting_pairs)
        elif info.dtype in _DTYPES:
            dtype = _DTYPES[info.dtype]
            size = info.num_elements * (4 if dtype == "F32" else 2)
            entries.append(_Entry(name, dtype, info.shape, size, partial(_stored, source, name, dtype)))
    order = {"F32": 0, "F16": 1, "BF16": 1, "I8": 2}
    return sorted(entries, key=lambda entry: (order[entry.dtype], entry.name))


def _quantized(source: TensorSource, name: str, shape: tuple[int, ...], fitting_pairs: bool) -> list[_Entry]:
    rows, columns = shape

    def values() -> NDArray[Any]:
        return quantize_weight(source.read(name), fitting_pairs).values

    def scales() -> NDArray[Any]:
        return quantize_weight(source.read(name), fitting_pairs).scales

    return [
        _Entry(name, "I8", shape, rows * columns, values),
        _Entry(name + SCALE, "F32", (rows, 1), 4 * rows, scales),
    ]


def _stored(source: TensorSource, name: str, dtype: str) -> NDArray[Any]:
    values = source.read(name)
    if dtype == "F32":
        return values
    if dtype == "F16":
        return values.astype(np.float16)
    upper: NDArray[Any] = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return upper


def _header(entries: Sequence[_Entry]) -> bytes:
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        end = position + entry.num_bytes
        described[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
