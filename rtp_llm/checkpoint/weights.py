"""A checkpoint's tensors fitted to a model's parameters: all filled, all used, or one error that lists the rest."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rtp_llm.checkpoint.tensors import TensorSource
from rtp_llm.core import FloatArray, QuantizedWeight
from rtp_llm.errors import CheckpointError

_MAX_LISTED = 10
_FLOATS = ("fp64", "fp32", "fp16", "bf16")
# A weight in 8 bits has a tensor of this name beside it, as compressed-tensors calls it.
SCALE = "_scale"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One weight of a model: `sources`, names in the checkpoint, are concatenated along axis 0 to `shape`."""

    sources: tuple[str, ...]
    shape: tuple[int, ...]


class Weights(Mapping[str, FloatArray]):
    """The parameters by name; each is read, converted and concatenated when it is asked for, and not kept.

    A single fp32 source is a read-only view of the mapped file. Of several, one at a time is held beside the result;
    pages of the file that earlier parameters have read are let go.
    """

    def __init__(self, source: TensorSource, parameters: Mapping[str, tuple[str, ...]]) -> None:
        self._source = source
        self._parameters = parameters

    def __getitem__(self, name: str) -> FloatArray:
        names = self._parameters[name]
        self._source.close()
        if len(names) == 1:
            return self._read(names[0])
        shapes = [self._source.tensors[source].shape for source in names]
        fused = np.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.float32)
        row = 0
        for source, shape in zip(names, shapes, strict=True):
            fused[row : row + shape[0]] = self._read(source)
            row += shape[0]
        return fused

    def matrix(self, name: str) -> FloatArray | QuantizedWeight:
        """A linear layer's weight [N, K]: in 8 bits where the checkpoint holds it so, else as `self[name]`."""
        names = self._parameters[name]
        quantized = {self._source.tensors[source].dtype == "int8" for source in names}
        if quantized == {False}:
            return self[name]
        if len(quantized) > 1:
            raise CheckpointError(f"{self._source.path}: of {', '.join(names)} all or none must be in 8 bits")
        self._source.close()
        values = [self._source.read_int8(source) for source in names]
        scales = [self._read(source + SCALE).reshape(-1) for source in names]
        return QuantizedWeight(np.concatenate(values) if len(values) > 1 else values[0], np.concatenate(scales))

    def sources(self, name: str) -> tuple[str, ...]:
        """The checkpoint's tensors that a parameter is made of."""
        return self._parameters[name]

    def _read(self, source: str) -> FloatArray:
        """A tensor all of whose numbers are finite in fp32; CheckpointError counts those that are not."""
        if self._source.tensors[source].dtype == "int8":
            raise CheckpointError(
                f"{self._source.file(source)}: tensor {source!r} is in 8 bits, which only linear layers may be"
            )
        check_floats(self._source, source)
        values = self._source.read(source)
        check_finite(values, self._source, source)
        return values

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def close(self) -> None:
        """Let the file's pages go, once everything is packed."""
        self._source.close()


def check_floats(source: TensorSource, name: str) -> None:
    """CheckpointError for a tensor of whole numbers, or of 8 bits without a scale: of some quantised checkpoint."""
    dtype = source.tensors[name].dtype
    if dtype not in _FLOATS:
        raise CheckpointError(
            f"{source.file(name)}: tensor {name!r} is of type {dtype}; quantised weights are not read, use an fp32, "
            "fp16 or bf16 checkpoint"
        )


def check_finite(values: FloatArray, source: TensorSource, name: str) -> None:
    """CheckpointError that counts the numbers of a tensor, or of a part of it, that are NaN or infinite."""
    # A sum is not finite where an element is not, and costs a fifth of looking at each; it may also overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    wrong = 0 if np.isfinite(total) else values.size - int(np.count_nonzero(np.isfinite(values)))
    if wrong:
        raise CheckpointError(
            f"{source.file(name)}: {wrong:,} of the {values.size:,} numbers of tensor {name!r} are NaN or infinite; "
            "download it again, or ask its authors"
        )


def bind(
    source: TensorSource,
    parameters: Mapping[str, Parameter],
    *,
    prefixes: Sequence[str] = (),
    renames: Sequence[tuple[str, str]] = (),
    ignore: Sequence[str] = (),
) -> Weights:
    """`parameters` filled from `source`; CheckpointError lists what is missing, unexpected and of the wrong shape.

    prefixes  stripped from the checkpoint's names where present, each at most once, in order
    renames   (regex, replacement) pairs, applied after that to every name
    ignore    regexes, searched in the resulting name: tensors that may be left unused
    """
    names = canonical_names(source, prefixes, renames)
    missing, wrong, bound = [], _wrong_scales(source), {}
    for target, parameter in parameters.items():
        absent = [name for name in parameter.sources if name not in names]
        missing += absent
        if not absent:
            originals = tuple(names[name] for name in parameter.sources)
            bound[target] = originals
            wrong += _wrong_shape(source, originals, parameter)
    used = {name for parameter in parameters.values() for name in parameter.sources}
    ignored = [re.compile(pattern) for pattern in ignore]
    unexpected = [
        name + _whose(source, original)
        for name, original in names.items()
        if name not in used and not any(pattern.search(name) for pattern in ignored)
    ]
    if missing or unexpected or wrong:
        found = {"missing": missing, "unexpected": unexpected, "of the wrong shape": wrong}
        lists = "; ".join(_listed(title, names_of) for title, names_of in found.items() if names_of)
        raise CheckpointError(f"{source.path} does not fit the model that config.json describes: {lists}")
    return Weights(source, bound)


def canonical_names(
    source: TensorSource, prefixes: Sequence[str], renames: Sequence[tuple[str, str]]
) -> dict[str, str]:
    """Name as the model declares it -> name in the file."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in renames]
    names: dict[str, str] = {}
    for original in source.tensors:
        name = original
        if name.endswith(SCALE) and _is_int8(source, name.removesuffix(SCALE)):
            continue
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        if name in names:
            raise CheckpointError(f"{source.path}: {names[name]!r} and {original!r} are both {name!r} of the model")
        names[name] = original
    return names


def _is_int8(source: TensorSource, name: str) -> bool:
    return name in source.tensors and source.tensors[name].dtype == "int8"


def _wrong_scales(source: TensorSource) -> list[str]:
    """Weights in 8 bits whose scales are not one number for each row; CheckpointError for one without any."""
    wrong = []
    for name in filter(lambda name: _is_int8(source, name), source.tensors):
        rows, scale = source.tensors[name].shape[:1], source.tensors.get(name + SCALE)
        if scale is None:
            check_floats(source, name)
        elif scale.shape not in (rows, (*rows, 1)) or not scale.dtype.startswith(("fp", "bf")):
            found = f"{scale.dtype} {list(scale.shape)}"
            wrong.append(f"{name + SCALE} {found}, needed a number for each of {rows[0] if rows else 0} rows")
    return wrong


def _wrong_shape(source: TensorSource, names: tuple[str, ...], parameter: Parameter) -> list[str]:
    shapes = [source.tensors[name].shape for name in names]
    if shapes == [parameter.shape]:
        return []
    rows = sum(shape[0] for shape in shapes if shape)
    if all(shape and shape[1:] == parameter.shape[1:] for shape in shapes) and (rows,) == parameter.shape[:1]:
        return []
    got = " + ".join(str(list(shape)) for shape in shapes)
    whose = _whose(source, names[0]) if len(names) == 1 else ""
    return [f"{' + '.join(names)}{whose} {got}, needed {list(parameter.shape)}"]


def _whose(source: TensorSource, name: str) -> str:
    """The file that a tensor is in, where that is not the one that the message begins with."""
    file = source.file(name)
    return "" if file == source.path else f" (in {file})"


def _listed(title: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"{len(names)} {title}: {', '.join(names[:_MAX_LISTED])}{more}"
