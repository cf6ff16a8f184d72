"""sentence-transformers itself as the peer: its `encode`, with its sorting, padding, pooling and copies.

In our dtype, with sdpa. Tokens are given as ids to both, so that no tokenizer is measured: a text stands for its ids,
the longer, the more they are.
"""

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from benchmarks import gpu_models
from benchmarks.gpu_models import Machine
from rtp_llm.core import FloatArray, Item

# The second is its name in earlier versions, and warns in later ones.
_PATHS = "sentence_transformers.sentence_transformer.modules", "sentence_transformers.models"
_modules: Any = import_module(_PATHS[0] if find_spec("sentence_transformers.sentence_transformer") else _PATHS[1])
_InputModule: Any = _modules.InputModule

_BATCHES = (32, 128)  # its default, and one that suits a GPU better
_MOST_TOKENS = 65_536  # of a padded batch


class SentenceTransformers:
    """transformers' model of a shape with random weights in it, or the model that is given."""

    def __init__(self, machine: Machine, hf: Mapping[str, Any], model: Any = None) -> None:
        self._machine, self._hf = machine, hf
        model = gpu_models.peer(machine, hf) if model is None else model
        self._ids = _Ids(model)
        pooling = _modules.Pooling(int(hf["hidden_size"]), pooling_mode=gpu_models.pooling_of(hf))
        self._encoder = SentenceTransformer(modules=[self._ids, pooling], device=machine.device)

    def encode(self, items: Sequence[Item], batch_size: int) -> FloatArray:
        """Vectors [n, H] of the items' ids."""
        rows: FloatArray = self._encoder.encode(self._ids.texts(items), batch_size=batch_size, show_progress_bar=False)
        return rows

    def tokens_a_second(self, mean_length: int) -> float:
        """With the better of the batch sizes."""
        tokens = 256 if self._machine.dry_run else 4 * max(gpu_models.budget(self._hf), mean_length)
        items = gpu_models.items(self._hf, mean_length, tokens)
        total = sum(item.num_tokens for item in items)
        rates = [1e-9]
        for size in (4,) if self._machine.dry_run else _BATCHES:
            size = max(min(size, _MOST_TOKENS // mean_length), 1)
            try:
                self.encode(items, size)
                started = time.perf_counter()
                self.encode(items, size)
                rates.append(total / (time.perf_counter() - started))
            except torch.OutOfMemoryError:
                self._machine.free()
        return max(rates)


class _Ids(_InputModule):  # type: ignore[misc]
    """The first module: ids instead of a tokenizer, then the transformer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.auto_model = model
        self._items: Sequence[Item] = ()

    def texts(self, items: Sequence[Item]) -> list[str]:
        """What stands for them, which `encode` sorts by length."""
        self._items = items
        return [str(place).rjust(8 + 4 * item.num_tokens) for place, item in enumerate(items)]

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        ids = [torch.from_numpy(self._items[int(text)].input_ids).long() for text in inputs]
        lengths = torch.tensor([len(one) for one in ids])
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return {"input_ids": padded, "attention_mask": mask.long()}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        output = self.auto_model(features["input_ids"], attention_mask=features["attention_mask"])
        return features | {"token_embeddings": output.last_hidden_state}

    def save(self, *_: Any, **__: Any) -> None:
        """There is nothing to keep."""
