"""Post-processing of the user's own, as `--custom_module FILE.py:Class` names it; rtp_llm.custom is its contract."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Rows, TaskType
from rtp_llm.custom import CustomModule, CustomRequest, CustomSource
from rtp_llm.errors import ConfigError, CustomModuleError
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import Task, TaskSource, load_task
from rtp_llm.tasks.finishing import check_dimensions, slice_and_normalize
from rtp_llm.tasks.plain import as_array, plain
from rtp_llm.tasks.token_vectors import Tokens
from rtp_llm.tasks.user_code import line_of, line_of_return, load_class, loading, running


class Custom(Task):
    """An instance of the user's class, called once for each request, with all of its inputs.

    embeddings   the dense task whose vectors it reads; None: hidden states, those of `hidden_layers` or the last
    vector_size  `dimension` of the user's class; None: it has none
    """

    def __init__(self, file: Path, module: CustomModule, source: TaskSource) -> None:
        self.file = file
        self.module = module
        self.name = type(module).__name__
        self.line = line_of(type(module), file)
        self.place = _place(file, self.line)
        if not callable(module):
            raise ConfigError(f"{file.parent}/{self.place}: {self.name} has no __call__, which answers a CustomRequest")
        self.returns = _place(file, line_of_return(type(module), "__call__", file))
        self.embeddings = self._embeddings(source)
        reader = self.embeddings or Tokens(source.hidden_size)
        self._read = reader
        self.per_token = reader.per_token
        self.reads = reader.reads
        self.hidden_layers = self._layers(source.num_layers) or reader.hidden_layers
        self.vector_size = self._vector_size()
        self.dimension = self.vector_size or reader.dimension

    @classmethod
    def load(cls, source: TaskSource) -> "Custom":
        """Run the file and make its class; ConfigError names the file and line where either fails."""
        path, colon, name = source.custom_module.rpartition(":")
        if not colon or not path or not name.isidentifier():
            raise ConfigError(
                f"custom_module: {source.custom_module!r} is not of the form FILE.py:Class", param="custom_module"
            )
        file = Path(path).expanduser().absolute()
        made = load_class(file, name)
        with loading(file, line_of(made, file)):
            return cls(file, made(_source_of(source)), source)

    @property
    def as_dense(self) -> Task | None:
        """Where the user's class has a `dimension`."""
        return CustomVectors(self, self.vector_size) if self.vector_size else None

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> what the class reads: the same, or its embeddings' rows."""
        return self._read(ops, hidden_states, batch)

    def check(self, params: Params) -> None:
        """What parameters mean is for the user's code to say."""

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> Any:
        """What the user's code makes of one request, as `plain` has it."""
        request = CustomRequest(
            hidden_states=[] if self.embeddings else self._hidden_states(rows),
            embeddings=self._vectors(rows, params, input_ids),
            input_ids=input_ids,
            extra=params.extra,
        )
        with running(self.file, self.line):
            return plain(self.module(request), f"{self.returns}: what {self.name} returned")

    def _hidden_states(self, rows: Rows) -> list[FloatArray]:
        """[tokens, len * H] -> [layers, tokens, H] an input where layers were asked for."""
        if not self.hidden_layers:
            return list(rows)
        count = len(self.hidden_layers)
        return [np.stack(np.split(states, count, axis=1)) for states in rows]

    def _vectors(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> FloatArray:
        if self.embeddings is None:
            return np.zeros((len(input_ids), 0), np.float32)
        # What the request says of vectors is meant for those that it gets.
        own = replace(params, dimensions=None, normalize=None)
        vectors: FloatArray = self.embeddings.finish(rows, own, input_ids)
        return vectors

    def _embeddings(self, source: TaskSource) -> Task | None:
        reads = getattr(self.module, "reads", "tokens")
        if reads not in ("tokens", "embeddings"):
            raise self._wrong("reads", reads, "'tokens' or 'embeddings'")
        return load_task(TaskType.DENSE, source) if reads == "embeddings" else None

    def _layers(self, num_layers: int) -> tuple[int, ...]:
        """Numbers of the layers that the class asks for, from 0; () where it asks for none."""
        asked = getattr(self.module, "hidden_layers", None)
        if asked is None:
            return ()
        wanted = f"whole numbers from {-num_layers - 1} to {num_layers}"
        if self.embeddings is not None or not isinstance(asked, (Sequence, range)) or not asked:
            raise self._wrong("hidden_layers", asked, f'{wanted}, of a class whose reads is "tokens"')
        if not all(type(layer) is int and -num_layers - 1 <= layer <= num_layers for layer in asked):
            raise self._wrong("hidden_layers", asked, wanted)
        return tuple(layer % (num_layers + 1) for layer in asked)

    def _vector_size(self) -> int | None:
        size = getattr(self.module, "dimension", None)
        if size is None or (type(size) is int and size > 0):
            return size
        raise self._wrong("dimension", size, "a positive whole number")

    def _wrong(self, attribute: str, value: Any, wanted: str) -> ConfigError:
        return ConfigError(
            f"{self.file.parent}/{self.place}: {self.name}.{attribute} is {value!r:.100}; it must be {wanted}"
        )


class CustomVectors(Task):
    """The dense task of a custom module that returns a vector for each input."""

    def __init__(self, custom: Custom, dimension: int) -> None:
        self.custom = custom
        self.dimension = dimension
        self.per_token = custom.per_token
        self.reads = custom.reads
        self.hidden_layers = custom.hidden_layers

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """As the custom task."""
        return self.custom(ops, hidden_states, batch)

    def check(self, params: Params) -> None:
        """`dimensions` must lie in 1..dimension."""
        check_dimensions(params, self.dimension)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> FloatArray:
        """-> [n, dimensions]; normalised where the request says so. CustomModuleError for anything but n vectors."""
        place = f"{self.custom.returns}: {self.custom.name}"
        returned, expected = self.custom.finish(rows, params, input_ids), (len(input_ids), self.dimension)
        try:
            vectors = as_array(returned, place).astype(np.float32, copy=False)
        except ValueError:
            raise CustomModuleError(
                f"{place} returned lists of unequal lengths; its dimension says {expected}"
            ) from None
        if vectors.shape != expected:
            raise CustomModuleError(f"{place} returned an array {vectors.shape}; its dimension says {expected}")
        return slice_and_normalize(vectors, params, normalizes=False)


def _place(file: Path, line: int | None) -> str:
    return f"{file.name}:{line}" if line else file.name


def _source_of(source: TaskSource) -> CustomSource:
    config, vocabulary = source.model_config, source.vocabulary
    special_ids: Mapping[str, int] = dict(vocabulary.special_ids)
    return CustomSource(
        folder=config.folder,
        config=config.hf,
        model_type=config.model_type,
        hidden_size=source.hidden_size,
        num_layers=source.num_layers,
        vocab_size=vocabulary.vocab_size,
        special_ids=special_ids,
        piece=vocabulary.piece,
        token_id=vocabulary.token_id,
    )
