"""Architectures: a model takes a packed batch to hidden states and knows nothing of tasks."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from rtp_llm.checkpoint import TensorSource
from rtp_llm.core import Batch
from rtp_llm.errors import ConfigError
from rtp_llm.ops import Ops, Tensor

# model_type (the original's and Hugging Face's names) -> (module, class).
MODELS: dict[str, tuple[str, str]] = {
    "bert": ("rtp_llm.models.bert", "Bert"),
}


class Model(Protocol):
    """What a task and the runtime need of an architecture.

    max_positions  the longest sequence it can read, in tokens
    """

    hidden_size: int
    vocab_size: int
    max_positions: int

    def __call__(self, ops: Ops, batch: Batch) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], after the last layer's norm."""


def find_model_type(flag: str, hf: Mapping[str, Any]) -> str:
    """The key in MODELS: the flag, or what config.json says; ConfigError lists what there is."""
    name = hf.get("model_type", "") if flag == "auto" else flag
    if name not in MODELS:
        origin = "config.json says model_type" if flag == "auto" else "model_type is"
        raise ConfigError(f"{origin} {name!r}, which is not one of {', '.join(MODELS)}", param="model_type")
    return str(name)


def load_model(model_type: str, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> Model:
    """Build the architecture and fill its weights, strictly: nothing missing, nothing left over."""
    module, name = MODELS[model_type]
    model: Model = getattr(import_module(module), name).load(hf, source, ops)
    return model
