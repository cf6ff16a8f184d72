"""`open_tensors`: the weights of a checkpoint's folder, with adapters in peft's files that are beside or below them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rtp_llm.architectures import JINA_V5
from rtp_llm.checkpoint.adapters import LowRank
from rtp_llm.checkpoint.folder import find, read_json
from rtp_llm.checkpoint.lora import CONFIG, LoraSource, open_lora
from rtp_llm.checkpoint.shards import open_weights
from rtp_llm.checkpoint.tensors import TensorInfo, TensorSource
from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.errors import CheckpointError, ConfigError

_FOR_ALL = 'choose this adapter for all: --json_model_override_args \'{{"lora_task": "{}"}}\''
_OWN_MODEL = "serve the folder of {!r} as a model of its own, with checkpoint_path"
FOLDER = "adapters"


def adapter_places(folder: Path) -> list[Path]:
    """The folders of the adapters below a checkpoint's, by name."""
    return sorted(path.parent for path in folder.glob(f"{FOLDER}/*/{CONFIG}"))


def has_folders(folder: Path) -> bool:
    """Whether it is a jina-embeddings-v5, which has its adapters below `adapters`, and of which none was chosen."""
    is_v5 = read_json(folder, "config.json", required=False).get("architectures") == [JINA_V5]
    return is_v5 and find(folder, CONFIG) is None


def open_tensors(folder: Path, lora_modules: Mapping[str, Path] | None = None) -> TensorSource:
    """The weights of a checkpoint's or a module's folder.

    An adapter's part is added where there is one beside them; of those below them, or of `lora_modules`, by name the
    folders, each request will choose.
    """
    below = adapter_places(folder)
    places = {place.name: place for place in below} if below and has_folders(folder) else {}
    if places and lora_modules:
        raise ConfigError(f"lora_modules: {folder} has adapters of its own", param="lora_modules")
    is_adapted = find(folder, CONFIG) is not None
    base = open_lora(open_weights(folder), folder) if is_adapted else open_weights(folder)
    if lora_modules:
        return AdapterFolders(base, lora_modules, _OWN_MODEL)
    return AdapterFolders(base, places, _FOR_ALL) if places else base


def adapter_summary(folder: Path) -> str | None:
    """What an adapter in peft's files changes, in words; None where there is none."""
    if find(folder, CONFIG) is None:
        return None
    source = open_tensors(folder)
    source.close()
    return source.summary if isinstance(source, LoraSource) else None


class AdapterFolders:
    """AdapterSource of adapters in folders of their own, name -> folder; the base's tensors are as they are.

    names    of the adapters, in the order of their numbers
    way_out  what to do with an adapter that is not for a request to choose, with a place for its name
    """

    def __init__(self, base: TensorSource, places: Mapping[str, Path], way_out: str) -> None:
        self._base, self._places, self._way_out = base, places, way_out
        self.names: Sequence[str] = list(places)
        self._adapters = [self._open(name) for name in places]
        self.path: Path = self._base.path
        self.tensors: Mapping[str, TensorInfo] = self._base.tensors

    def low_rank(self, name: str, adapter: int) -> LowRank | None:
        """As AdapterSource has it."""
        return self._adapters[adapter].low_rank(name)

    def check_read(self, tensors: Collection[str]) -> None:
        """CheckpointError where an adapter adds to more than these tensors of the base, by which a model is adapted."""
        for name, adapter in zip(self.names, self._adapters, strict=True):
            other = next((tensor for tensor in adapter.added if tensor not in tensors), None)
            if other is not None:
                raise self._not_to_choose(name, f"{other} is no linear layer or table of the model")

    def _open(self, name: str) -> LoraSource:
        adapter = open_lora(self._base, self._places[name])
        if adapter.replaced is not None:
            raise self._not_to_choose(name, f"{adapter.replaced} comes in the place of the base's")
        return adapter

    def _not_to_choose(self, name: str, why: str) -> CheckpointError:
        way_out = self._way_out.format(name)
        return CheckpointError(f"{self._places[name]}: {why}, which is not for each request to choose; {way_out}")

    def read(self, name: str) -> FloatArray:
        return self._base.read(name)

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        return self._base.read_part(name, axis, start, stop)

    def read_int8(self, name: str) -> Int8Array:
        return self._base.read_int8(name)

    def file(self, name: str) -> Path:
        return self._base.file(name)

    def close(self) -> None:
        for adapter in self._adapters:
            adapter.close()
        self._base.close()
