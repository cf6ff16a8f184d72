"""MaxSim: the first input is a query, the others are documents; the best by ColBERT's late interaction.

rtp-llm serve CHECKPOINT --custom_module examples/maxsim_top_k.py:MaxSim
curl http://localhost:8088/v1/custom -d '{"input": ["a query", "a document", "another"], "extra": {"top_k": 1}}'
"""

from typing import Any

import numpy as np

from rtp_llm.core import FloatArray
from rtp_llm.custom import CustomRequest, CustomSource


class MaxSim:
    """{"indices": the documents' places, best first, "scores": mean over the query's tokens of their best match}."""

    def __init__(self, source: CustomSource) -> None:
        """There is nothing to load."""

    def __call__(self, request: CustomRequest) -> dict[str, Any]:
        query, *documents = (_normalized(states) for states in request.hidden_states)
        if not documents:
            raise ValueError("input: give a query and at least one document")
        top_k = request.extra.get("top_k", len(documents))
        if type(top_k) is not int or top_k < 1:
            raise ValueError(f"top_k: {top_k!r} is not a whole number of at least 1")
        scores = np.array([(query @ document.T).max(axis=1).mean() for document in documents])
        best = np.argsort(-scores, kind="stable")[:top_k]
        return {"indices": best, "scores": scores[best]}


def _normalized(states: FloatArray) -> FloatArray:
    normalized: FloatArray = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    return normalized
