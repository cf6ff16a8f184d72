"""Rotary positions: what config.json says of them -> rows of cosines and sines, as transformers computes them.

Frequencies and angles are fp32, as in transformers' modeling_rope_utils: at long distances their rounding is part of
what a checkpoint was trained with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rtp_llm.core import Batch, FloatArray
from rtp_llm.errors import CheckpointError
from rtp_llm.models import Model
from rtp_llm.ops import Ops, Tensor

_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
_THETA = 10000.0  # where nobody says it
_CHUNK = 4096  # positions whose angles are held in float64 at once
_MOST_ROWS, _MOST_NUMBERS = 1 << 17, 1 << 24  # of a table: 64 MB


@dataclass(frozen=True, kw_only=True)
class Rope:
    """One kind of rotary positions; the fields have the names of config.json's `rope_parameters`.

    rope_type           one of config.json's, or `ntk`: frequencies of a theta `factor` times as large, slower by
                        factor ** (2 / head_dim) (Su 2023, https://kexue.fm/archives/9706)
    trained_positions   max_position_embeddings: beyond it `dynamic` changes its frequencies
    original_positions  original_max_position_embeddings, which `yarn` and `llama3` stretch
    bands               low_freq_factor and high_freq_factor of `llama3`: turns over the original positions
    """

    head_dim: int
    theta: float
    rope_type: str
    factor: float
    trained_positions: int
    original_positions: int
    attention_factor: float = 1.0
    yarn: Mapping[str, Any] = field(default_factory=dict)
    bands: tuple[float, float] = (1.0, 4.0)

    @property
    def max_positions(self) -> int:
        """Tokens of the longest sequence that the scaling is meant for."""
        if self.rope_type in ("llama3", "ntk"):  # its max_position_embeddings is the stretched length already
            return self.trained_positions
        base = self.original_positions if self.rope_type == "yarn" else self.trained_positions
        return max(self.trained_positions, int(base * self.factor))

    @property
    def fixed_positions(self) -> int:
        """Positions whose angles do not depend on the length of their sequence."""
        return self.trained_positions if self.rope_type == "dynamic" else self.max_positions

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], head_dim: int, max_position_embeddings: int) -> "Rope":
        """From `rope_parameters`, or the older `rope_theta` and `rope_scaling`; CheckpointError if unsupported."""
        parameters = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
        flat = isinstance(parameters, dict) and not any(isinstance(value, dict) for value in parameters.values())
        rope_type = parameters.get("rope_type", parameters.get("type", "default")) if flat else None
        if rope_type not in _TYPES:
            raise CheckpointError(f"config.json: rope_parameters {parameters}; supported are {', '.join(_TYPES)}")
        partial = parameters.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
        if partial not in (None, 1) or head_dim % 2:
            raise CheckpointError(
                f"config.json: head_dim {head_dim}, partial_rotary_factor {partial}; only whole heads of even size turn"
            )
        original = hf.get("original_max_position_embeddings") or parameters.get("original_max_position_embeddings")
        original = original or max_position_embeddings
        factor = None if rope_type == "default" else parameters.get("factor")
        if factor is None:
            factor = max_position_embeddings / original if rope_type == "yarn" else 1.0
        if not isinstance(factor, (int, float)) or factor < 1:
            raise CheckpointError(f"config.json: rope factor {factor!r}; a number of at least 1 is needed")
        theta = _theta(hf, parameters)
        if (rope_type, theta) == ("yarn", 1.0) or (rope_type, head_dim) == ("dynamic", 2):
            raise CheckpointError(
                f"config.json: rope_theta {theta:g}, head_dim {head_dim}; {rope_type} has no frequencies for these"
            )
        return cls(
            head_dim=head_dim,
            theta=theta,
            rope_type=rope_type,
            factor=factor,
            trained_positions=max_position_embeddings,
            original_positions=original,
            attention_factor=_attention_factor(parameters, factor) if rope_type == "yarn" else 1.0,
            yarn=parameters if rope_type == "yarn" else {},
            bands=_bands(parameters) if rope_type == "llama3" else (1.0, 4.0),
        )

    def rows(self, num_positions: int, seqlen: int = 0) -> FloatArray:
        """Cosines, then sines of positions 0..num_positions - 1 -> [num_positions, head_dim].

        `seqlen` is the length of their sequence, which matters to `dynamic` where it is over trained_positions.
        """
        frequencies = self._frequencies(seqlen)
        half = len(frequencies)
        rows = np.empty((num_positions, 2 * half), np.float32)
        for start in range(0, num_positions, _CHUNK):
            positions = np.arange(start, min(num_positions, start + _CHUNK), dtype=np.float32)
            angles = (positions[:, None] * frequencies).astype(np.float64)
            np.cos(angles, out=rows[start : start + _CHUNK, :half], casting="same_kind")
            np.sin(angles, out=rows[start : start + _CHUNK, half:], casting="same_kind")
        rows *= np.float32(self.attention_factor)
        return rows

    def _frequencies(self, seqlen: int) -> FloatArray:
        """[head_dim / 2]: radians a position."""
        theta = self.theta
        if self.rope_type == "dynamic" and seqlen > self.trained_positions:
            stretch = np.float32(self.factor) * np.float32(seqlen) / np.float32(self.trained_positions)
            exponent = self.head_dim / (self.head_dim - 2)
            theta = float(np.float32(theta) * np.float32(float(stretch - np.float32(self.factor - 1)) ** exponent))
        if self.rope_type == "ntk":
            theta *= self.factor
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        wavelengths = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
        frequencies: FloatArray = np.float32(1) / wavelengths
        if self.rope_type == "linear":
            frequencies /= np.float32(self.factor)
        if self.rope_type == "ntk":
            frequencies /= np.float32(self.factor ** (2 / self.head_dim))
        if self.rope_type == "llama3":
            return self._llama3(frequencies)
        return self._yarn(wavelengths) if self.rope_type == "yarn" else frequencies

    def _llama3(self, frequencies: FloatArray) -> FloatArray:
        """Llama 3.1: frequencies under the low band are divided by `factor`, those over the high one kept.

        Between the two they go over from one to the other; one that is in both bands counts as low.
        """
        low, high = self.bands
        wavelengths = (np.float32(1) / frequencies) * np.float32(2 * math.pi)
        is_low = wavelengths > np.float32(self.original_positions / low)
        is_high = wavelengths < np.float32(self.original_positions / high)
        turns = (np.float32(1) / wavelengths) * np.float32(self.original_positions)
        kept = (turns - np.float32(low)) / np.float32(high - low)
        stretched = frequencies / np.float32(self.factor)
        between = (np.float32(1) - kept) * frequencies / np.float32(self.factor) + kept * frequencies
        return np.where(is_low, stretched, np.where(is_high, frequencies, between))

    def _yarn(self, wavelengths: FloatArray) -> FloatArray:
        """YaRN (Peng et al. 2023): fast dimensions keep their frequency, slow ones are stretched by `factor`."""
        low, high = (self._dimension(self.yarn.get(key) or beta) for key, beta in (("beta_fast", 32), ("beta_slow", 1)))
        if self.yarn.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.head_dim - 1)
        width = high - low or 0.001
        dimensions = np.arange(len(wavelengths), dtype=np.float32)
        kept = np.float32(1) - np.clip((dimensions - np.float32(low)) / np.float32(width), 0, 1)
        stretched = np.float32(1) / (np.float32(self.factor) * wavelengths)
        frequencies: FloatArray = stretched * (np.float32(1) - kept) + (np.float32(1) / wavelengths) * kept
        return frequencies

    def _dimension(self, rotations: float) -> float:
        """The dimension that turns so many times over the original positions."""
        turns = math.log(self.original_positions / (rotations * 2 * math.pi))
        return self.head_dim * turns / (2 * math.log(self.theta))


def _theta(hf: Mapping[str, Any], parameters: Mapping[str, Any]) -> float:
    """`rope_theta` of the parameters, else of config.json; CheckpointError where it is the unread parameters' alone."""
    given = parameters.get("rope_theta") or hf.get("rope_theta")
    theta, unread = given or _THETA, (hf.get("rope_parameters") or {}).get("rope_theta")
    if given is None and unread not in (None, theta):
        raise CheckpointError(
            f"config.json: rope_scaling has no rope_theta, and that of rope_parameters is {unread}; transformers would "
            f"read {theta:g}: write the rope_theta that is meant into rope_scaling"
        )
    return float(theta)


def _attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    """What YaRN multiplies cosines and sines by: given, or from the factor."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1)


def _bands(parameters: Mapping[str, Any]) -> tuple[float, float]:
    """The two factors of `llama3`, the lower first."""
    low, high = (parameters.get(key) for key in ("low_freq_factor", "high_freq_factor"))
    if not (isinstance(low, (int, float)) and isinstance(high, (int, float)) and 0 < low < high):
        raise CheckpointError(
            f"config.json: rope low_freq_factor {low!r}, high_freq_factor {high!r}; llama3 needs both, the lower first"
        )
    return float(low), float(high)


class RopeTables:
    """The rows of each of a model's ropes, kept where the kernels read them, for sequences of usual length."""

    def __init__(self, ropes: Sequence[Rope], ops: Ops) -> None:
        self.ropes = ropes
        numbers = max(rope.head_dim for rope in ropes)
        self.num_rows = min(_MOST_ROWS, _MOST_NUMBERS // numbers, *(rope.fixed_positions for rope in ropes))
        self.tables = [ops.table(rope.rows(self.num_rows)) for rope in ropes]

    def prepare(self, batch: Batch) -> Batch:
        """Rows that the tables lack, of longer sequences, are computed for the batch."""
        return _with_rows(batch, self.ropes) if batch.position_ids.max() >= self.num_rows else batch

    def __call__(self, ops: Ops, batch: Batch) -> list[Tensor]:
        """Of each rope every token's row [T, head_dim]; the batch is one that `prepare` has seen."""
        if isinstance(batch, LongBatch):
            return [ops.vector(rows) for rows in batch.cos_sin]
        return [ops.embed([(table, batch.position_ids)]) for table in self.tables]


class RotaryModel(Model):
    """A model with rotary positions."""

    rope_tables: RopeTables

    def prepare(self, batch: Batch) -> Batch:
        """Positions count from 0; angles that the tables lack, of longer sequences, are computed for the batch."""
        return self.rope_tables.prepare(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class LongBatch(Batch):
    """A batch with a sequence longer than the tables: `cos_sin` has, of each rope, every token's row [T, head_dim]."""

    cos_sin: tuple[FloatArray, ...]


def _with_rows(batch: Batch, ropes: Sequence[Rope]) -> LongBatch:
    """Each sequence's rows as if it were alone, so that neither its neighbours nor earlier batches change it."""
    fields = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    return LongBatch(**fields, cos_sin=tuple(_rows(batch, rope) for rope in ropes))


def _rows(batch: Batch, rope: Rope) -> FloatArray:
    if rope.rope_type == "dynamic":
        return np.concatenate([rope.rows(length, seqlen=length) for length in np.diff(batch.cu_seqlens).tolist()])
    return rope.rows(int(batch.position_ids.max()) + 1)[batch.position_ids]
