"""Which files hold a folder's weights, and one source over several of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rtp_llm.checkpoint.folder import find, read_json
from rtp_llm.checkpoint.onnx import instead_of_folder
from rtp_llm.checkpoint.safetensors_file import SafetensorsFile
from rtp_llm.checkpoint.tensors import TensorSource
from rtp_llm.checkpoint.torch_pickle import TorchFile
from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.errors import CheckpointError

_FORMATS: tuple[tuple[str, Callable[[Path], TensorSource]], ...] = (
    ("model.safetensors", SafetensorsFile),
    ("pytorch_model.bin", TorchFile),
)


def open_weights(folder: Path) -> TensorSource:
    """The weights that a folder has of its own: safetensors before torch's pickle, whole or sharded."""
    for name, opener in _FORMATS:
        path = find(folder, name)
        if path is not None:
            return opener(path)
        if find(folder, f"{name}.index.json") is not None:
            return _open_shards(folder, f"{name}.index.json")
    raise CheckpointError(
        f"{folder}: no model.safetensors, pytorch_model.bin or index of one{_found(folder)}; other formats are not read"
        f"{instead_of_folder(folder)}"
    )


def has_weights(folder: Path) -> bool:
    """Whether `open_weights` would find any."""
    return any(find(folder, f"{name}{ending}") is not None for name, _ in _FORMATS for ending in ("", ".index.json"))


def open_file(path: Path) -> TensorSource:
    """One file of weights: safetensors by its suffix, everything else as torch.save writes it."""
    if find(path.parent, path.name) is None:
        raise CheckpointError(f"{path} is missing")
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def _found(folder: Path) -> str:
    if not folder.is_dir():
        return " (there is no such folder)"
    suffixes = {".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".gguf", ".ot"}
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in suffixes)
    return f" (there is {', '.join(names[:5])})" if names else ""


class Shards:
    """Several files behind one index."""

    def __init__(self, path: Path, sources: Mapping[str, TensorSource]) -> None:
        self.path = path
        self._owner = {name: source for source in sources.values() for name in source.tensors}
        self._sources = tuple(sources.values())
        self.tensors = {name: source.tensors[name] for name, source in self._owner.items()}
        for name, owner in self._owner.items():
            other = next((source for source in self._sources if source is not owner and name in source.tensors), None)
            if other is not None:
                raise CheckpointError(f"{path}: tensor {name!r} is in both {other.path.name} and {owner.path.name}")

    def read(self, name: str) -> FloatArray:
        return self._owner[name].read(name)

    def read_int8(self, name: str) -> Int8Array:
        return self._owner[name].read_int8(name)

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        return self._owner[name].read_part(name, axis, start, stop)

    def file(self, name: str) -> Path:
        return self._owner[name].file(name)

    def close(self) -> None:
        for source in self._sources:
            source.close()


def _open_shards(folder: Path, index_name: str) -> Shards:
    index = folder / index_name
    weight_map = read_json(folder, index_name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: no weight_map from tensor to file")
    sources: dict[str, TensorSource] = {}
    for shard in sorted(set(weight_map.values())):
        path = find(folder, shard)
        if path is None:
            raise CheckpointError(f"{folder / shard} is missing, but {index_name} names it; download it again")
        sources[shard] = open_file(path)
    for name, shard in weight_map.items():
        if name not in sources[shard].tensors:
            raise CheckpointError(f"{folder / shard}: no tensor {name!r}, though {index_name} says so")
    return Shards(index, sources)
