"""What is done to a request's own rows: activations by torch's dotted path, softmax, slices, the largest weights."""

from pathlib import Path

import numpy as np

from rtp_llm.core import FloatArray, Int32Array, Params, SparseVector
from rtp_llm.errors import CheckpointError, InvalidRequest
from rtp_llm.model_config import ModelConfig
from rtp_llm.ops.numpy_ops import ACTIVATION, l2_normalize
from rtp_llm.tasks import Vocabulary

# torch.nn class -> our activation; None is the identity.
_TORCH_ACTIVATIONS: dict[str, str | None] = {
    "Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu", "Sigmoid": "sigmoid",
    "LeakyReLU": "leaky_relu", "ELU": "elu", "SELU": "selu", "CELU": "celu", "Softplus": "softplus",
    "Softsign": "softsign", "Mish": "mish", "ReLU6": "relu6", "Hardtanh": "hardtanh", "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish", "LogSigmoid": "logsigmoid", "Tanhshrink": "tanhshrink",
}  # fmt: skip


def torch_activation(dotted: str, file: Path) -> str | None:
    """Our name of the torch activation that `file` names by its dotted path."""
    name = dotted.rpartition(".")[2]
    if not dotted.startswith("torch.") or name not in _TORCH_ACTIVATIONS:
        known = ", ".join(_TORCH_ACTIVATIONS)
        raise CheckpointError(f"{file}: activation_function {dotted!r} is not a torch.nn class among {known}")
    return _TORCH_ACTIVATIONS[name]


def activate(logits: FloatArray, name: str | None) -> FloatArray:
    """[n, L] -> the same shape through `softmax` over L, an activation of the ops, or nothing (None, none); in fp64."""
    if name is None or name == "none":
        return logits
    x = logits.astype(np.float64)
    if name == "softmax":
        weights = np.exp(x - x.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)
    # The functions are written for arrays of any float; their type says the commonest.
    return np.asarray(ACTIVATION[name](x), np.float32)  # type: ignore[arg-type]


def check_score_activation(params: Params) -> None:
    """InvalidRequest for a softmax of the one score that a reranker gives."""
    if params.activation == "softmax":
        raise InvalidRequest(
            "activation: softmax of a single score is always 1; ask for sigmoid or none", param="activation"
        )


def check_dimensions(params: Params, dimension: int) -> None:
    """InvalidRequest unless `dimensions` lies in 1..dimension."""
    if params.dimensions is not None and not 1 <= params.dimensions <= dimension:
        raise InvalidRequest(
            f"dimensions: {params.dimensions} is not between 1 and {dimension}, the model's own size",
            param="dimensions",
        )


def slice_and_normalize(
    rows: FloatArray, params: Params, *, normalizes: bool, truncate_dim: int | None = None
) -> FloatArray:
    """[n, D] -> [n, dimensions], then L2-normalised as the request or, by `normalizes`, the checkpoint says.

    `truncate_dim` is for a request that names no dimensions: as sentence-transformers has it, such vectors are cut
    after the checkpoint's own Normalize, and are shorter than one unless the request wants them normalised.
    """
    if params.dimensions is not None:
        rows = rows[:, : params.dimensions]
    normalize = normalizes if params.normalize is None else params.normalize
    rows = l2_normalize(rows) if normalize else rows
    if params.dimensions is not None or truncate_dim is None:
        return rows
    rows = rows[:, :truncate_dim]
    return l2_normalize(rows) if params.normalize else rows


def own_truncate_dim(config: ModelConfig, dimension: int) -> int | None:
    """The checkpoint's own, of vectors of `dimension` columns; None: all. CheckpointError for more than those."""
    own = config.truncate_dim
    if own is not None and own > dimension:
        raise CheckpointError(
            f"{config.folder / 'config_sentence_transformers.json'}: truncate_dim is {own}, but the model's vectors "
            f"have {dimension} dimensions"
        )
    return None if own == dimension else own


def check_max_active_dims(params: Params) -> None:
    """InvalidRequest unless `max_active_dims` is at least 1."""
    if params.max_active_dims is not None and params.max_active_dims < 1:
        raise InvalidRequest(
            f"max_active_dims: {params.max_active_dims} is not at least 1; leave it out for all of a vector's weights",
            param="max_active_dims",
        )


def sparse_vector(
    indices: Int32Array, values: FloatArray, params: Params, vocabulary: Vocabulary, max_active_dims: int | None = None
) -> SparseVector:
    """Weights by ascending ids -> the vector: as many as the request or else `max_active_dims` says, the largest.

    Large is what is far from 0, and of equal weights the first are kept. Source: sentence-transformers,
    `select_max_active_dims`, which leaves open which of equal ones it keeps.
    """
    most = max_active_dims if params.max_active_dims is None else params.max_active_dims
    if most is not None and most < len(values):
        kept = np.sort(np.argsort(-np.abs(values), kind="stable")[:most])
        indices, values = indices[kept], values[kept]
    tokens = tuple(map(vocabulary.piece, indices.tolist())) if params.return_tokens else None
    return SparseVector(indices, values, tokens)
