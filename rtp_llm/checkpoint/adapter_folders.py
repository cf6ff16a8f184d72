"""`open_tensors`: the weights of a checkpoint's folder, with adapters in peft's files that are beside or below them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rtp_llm.architectures import JINA_V5
from rtp_llm.checkpoint.adapters import LowRank
from rtp_llm.checkpoint.folder import find, read_json
from rtp_llm.checkpoint.lora import CONFIG, LoraSource, open_lora
from rtp_llm.checkpoint.shards import open_weights
from rtp_llm.checkpoint.tensors import TensorInfo, TensorSource
from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.errors import CheckpointError

FOLDER = "adapters"


def adapter_places(folder: Path) -> list[Path]:
    """The folders of the adapters below a checkpoint's, by name."""
    return sorted(path.parent for path in folder.glob(f"{FOLDER}/*/{CONFIG}"))


def has_folders(folder: Path) -> bool:
    """Whether it is a jina-embeddings-v5, which has its adapters below `adapters`, and of which none was chosen."""
    is_v5 = read_json(folder, "config.json", required=False).get("architectures") == [JINA_V5]
    return is_v5 and find(folder, CONFIG) is None


def open_tensors(folder: Path) -> TensorSource:
    """The weights of a checkpoint's or a module's folder.

    An adapter's part is added where there is one beside them; of those below them each request will choose.
    """
    if find(folder, CONFIG) is not None:
        return open_lora(open_weights(folder), folder)
    return AdapterFolders(folder) if adapter_places(folder) and has_folders(folder) else open_weights(folder)


def adapter_summary(folder: Path) -> str | None:
    """What an adapter in peft's files changes, in words; None where there is none."""
    if find(folder, CONFIG) is None:
        return None
    source = open_tensors(folder)
    source.close()
    return source.summary if isinstance(source, LoraSource) else None


class AdapterFolders:
    """AdapterSource of adapters below their base, whose tensors are as they are.

    names  of the adapters, in the order of their numbers
    """

    def __init__(self, folder: Path) -> None:
        places = adapter_places(folder)
        self._base = open_weights(folder)
        self._adapters = [_open_chosen(self._base, place) for place in places]
        self.names: Sequence[str] = [place.name for place in places]
        self.path: Path = self._base.path
        self.tensors: Mapping[str, TensorInfo] = self._base.tensors

    def low_rank(self, name: str, adapter: int) -> LowRank | None:
        """As AdapterSource has it."""
        return self._adapters[adapter].low_rank(name)

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


def _open_chosen(base: TensorSource, place: Path) -> LoraSource:
    """An adapter that requests may choose; CheckpointError for one that also has tensors in the place of the base's."""
    adapter = open_lora(base, place)
    if adapter.replaced is not None:
        raise CheckpointError(
            f"{place}: {adapter.replaced} comes in the place of the base's, which is not for each request to choose; "
            f'choose this adapter for all: --json_model_override_args \'{{"lora_task": "{place.name}"}}\''
        )
    return adapter
