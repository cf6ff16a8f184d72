"""BGE-M3's dense, sparse and colbert outputs, by FlagEmbedding itself or by its formulas."""

from typing import Any

import numpy as np

from rtp_llm.core import TaskType
from rtp_llm.m3_heads import COLBERT_HEAD, SPARSE_HEAD
from rtp_llm.verify.huggingface import encode, load_model, load_tokenizer
from rtp_llm.verify.outcome import Answer, Sample, Value
from rtp_llm.verify.references import Original

# FlagEmbedding gives these no weight.
_UNWEIGHTED = ("cls_token", "eos_token", "pad_token", "unk_token")


class FlagReference:
    """FlagEmbedding's BGEM3FlagModel."""

    def __init__(self, original: Original) -> None:
        from FlagEmbedding import BGEM3FlagModel

        self._limit = original.max_seq_len
        self._model = BGEM3FlagModel(
            str(original.folder), use_fp16=False, devices="cpu", trust_remote_code=original.trust_remote_code
        )
        self._tokenizer = load_tokenizer(original)

    def answer(self, sample: Sample) -> Answer:
        """All three of one text."""
        output = self._model.encode(
            [sample.input], max_length=self._limit, return_dense=True, return_sparse=True, return_colbert_vecs=True
        )
        weights = {int(token): float(weight) for token, weight in output["lexical_weights"][0].items()}
        values: dict[TaskType, dict[str, Value]] = {
            TaskType.DENSE: {"dense": np.asarray(output["dense_vecs"][0], np.float32)},
            TaskType.SPARSE: {"sparse": weights},
            TaskType.COLBERT: {"colbert": np.asarray(output["colbert_vecs"][0], np.float32)},
        }
        ids = encode(self._tokenizer, sample, self._limit)["input_ids"][0].tolist()
        return Answer(values, ids)


class FormulaReference:
    """Source: FlagEmbedding, finetune/embedder/encoder_only/m3/modeling.py, inference/embedder/encoder_only/m3.py."""

    def __init__(self, original: Original) -> None:
        import torch

        def head(name: str) -> dict[str, Any]:
            state = torch.load(original.folder / name, map_location="cpu", weights_only=True)
            return {key: tensor.float() for key, tensor in state.items()}

        self._sparse, self._colbert = head(SPARSE_HEAD), head(COLBERT_HEAD)
        self._model = load_model(original, "AutoModel")
        self._tokenizer = load_tokenizer(original)
        self._limit = original.max_seq_len
        special = self._tokenizer.special_tokens_map
        roles = [role for role in _UNWEIGHTED if role in special]
        self._unweighted = {self._tokenizer.convert_tokens_to_ids(special[role]) for role in roles}

    def answer(self, sample: Sample) -> Answer:
        """All three of one text."""
        import torch
        from torch.nn.functional import linear, normalize

        encoded = encode(self._tokenizer, sample, self._limit)
        ids = encoded["input_ids"][0].tolist()
        with torch.inference_mode():
            hidden = self._model(**encoded).last_hidden_state[0]
            dense = normalize(hidden[0], dim=-1).numpy()
            weights = torch.relu(linear(hidden, **self._sparse))[:, 0].tolist()
            colbert = normalize(linear(hidden[1:], **self._colbert), dim=-1).numpy()
        values: dict[TaskType, dict[str, Value]] = {
            TaskType.DENSE: {"dense": dense},
            TaskType.SPARSE: {"sparse": self._largest(ids, weights)},
            TaskType.COLBERT: {"colbert": colbert},
        }
        return Answer(values, ids)

    def _largest(self, ids: list[int], weights: list[float]) -> dict[int, float]:
        """Each id's largest weight, of those above 0."""
        largest: dict[int, float] = {}
        for token_id, weight in zip(ids, weights, strict=True):
            if weight > 0 and token_id not in self._unweighted:
                largest[token_id] = max(weight, largest.get(token_id, 0.0))
        return largest
