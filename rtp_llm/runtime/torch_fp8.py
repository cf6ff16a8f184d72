"""Does a model in 8 bits still say what it says in 16? Asked at load, on sequences of random tokens."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rtp_llm.checkpoint import TensorSource
from rtp_llm.core import Batch, FloatArray, Item, pack
from rtp_llm.errors import ConfigError, one_line
from rtp_llm.models import Model, load_model
from rtp_llm.ops.torch_ops import TorchOps
from rtp_llm.ops.triton_launch import on
from rtp_llm.ops.triton_ops import TritonOps

logger = logging.getLogger(__name__)

LEAST_MEAN, LEAST_P1 = 0.998, 0.99
_SEQUENCES = 128
_LONGEST = 64


def load_fp8(model_type: str, hf: Mapping[str, Any], source: TensorSource, ops: TorchOps) -> Model:
    """The model in 8 bits, for `ops`; that in 16 is beside it while the two are compared."""
    assert isinstance(ops, TritonOps)
    model = load_model(model_type, hf, source, ops.fork("fp8"))
    exact = load_model(model_type, hf, source, ops)
    try:
        check_fp8((exact, ops.in_16_bits()), (model, ops))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        problem = one_line(error)
        raise ConfigError(f"quantization fp8 cannot be used here: {problem:.200}", param="quantization") from error
    return model


def check_fp8(exact: tuple[Model, TorchOps], quantized: tuple[Model, TorchOps]) -> None:
    """Compare the vectors of two models, each with its ops; log the cosines; ConfigError where they are too low."""
    mean, p1 = likeness(exact, quantized)
    logger.info("fp8: cosine with the model in 16 bits, %d sequences: mean %.5f, p1 %.5f", _SEQUENCES, mean, p1)
    if not (mean >= LEAST_MEAN and p1 >= LEAST_P1):
        raise ConfigError(
            f"quantization fp8: cosine with the model in 16 bits is {mean:.4f} in the mean and {p1:.4f} at the worst "
            f"hundredth, {LEAST_MEAN} and {LEAST_P1} are the least; leave out --quantization",
            param="quantization",
        )


def likeness(exact: tuple[Model, TorchOps], quantized: tuple[Model, TorchOps]) -> tuple[float, float]:
    """The cosines of two models' vectors, each model with its ops: their mean, and that of the worst hundredth."""
    with torch.inference_mode(), on(quantized[1].device):
        cosines = _cosines(*(_vectors(model, ops) for model, ops in (exact, quantized)))
    return float(cosines.mean()), float(np.percentile(cosines, 1))


def _vectors(model: Model, ops: TorchOps) -> FloatArray:
    """One vector a sequence: of a causal model the last token's, else the mean."""
    batch = model.prepare(_batch(model))
    there = ops.upload(batch)
    hidden_states = model(ops, there)
    return ops.to_numpy(ops.pool(hidden_states, there, "lasttoken" if model.causal else "mean"))


def _batch(model: Model) -> Batch:
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, min(_LONGEST, model.max_positions), _SEQUENCES, endpoint=True)
    return pack([Item(rng.integers(0, model.vocab_size, n, dtype=np.int32), i) for i, n in enumerate(lengths)])


def _cosines(a: FloatArray, b: FloatArray) -> FloatArray:
    products = (a * b).sum(axis=1)
    cosines: FloatArray = products / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosines
