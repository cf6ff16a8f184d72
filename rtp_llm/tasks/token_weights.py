"""A weight for each token of the vocabulary: a text's sparse vector has those of its tokens, and no model is run.

Equals sentence-transformers' SparseStaticEmbedding.
"""

from pathlib import Path

import numpy as np

from rtp_llm import config_files
from rtp_llm.checkpoint import Parameter, bind, find, open_tensors, read_json
from rtp_llm.core import FloatArray, Int32Array, Params, SparseVector
from rtp_llm.errors import CheckpointError
from rtp_llm.tasks import Vocabulary
from rtp_llm.tasks.finishing import sparse_vector

_LARGEST = float(np.finfo(np.float32).max)


class TokenWeights:
    """`weights` [vocabulary], for the ids of `vocabulary`."""

    def __init__(self, weights: FloatArray, vocabulary: Vocabulary) -> None:
        self.weights = weights
        self.vocabulary = vocabulary

    @classmethod
    def load(cls, folder: Path, checkpoint: Path, vocabulary: Vocabulary) -> "TokenWeights":
        """The folder's tensor, or the weights by token of a .json file that its config.json names.

        Such a file is looked for in the folder and in `checkpoint`.
        """
        settings = read_json(folder, "config.json", required=False)
        config_files.check(folder / "config.json", settings, config_files.TOKEN_WEIGHTS)
        config_files.log_unknown(folder / "config.json", settings, config_files.TOKEN_WEIGHTS)
        name = settings.get("path")
        if name is not None and name.endswith(".json"):
            return cls(_by_token(folder, checkpoint, name, vocabulary), vocabulary)
        source = open_tensors(folder)
        weights = bind(source, {"weight": Parameter(("weight",), (vocabulary.vocab_size,))})["weight"].copy()
        source.close()
        return cls(weights, vocabulary)

    def vector(self, input_ids: Int32Array, params: Params, max_active_dims: int | None) -> SparseVector:
        """The weights of a text's tokens, each once however often it stands there."""
        indices = np.unique(input_ids)
        values = self.weights[indices]
        is_there = values != 0
        return sparse_vector(indices[is_there], values[is_there], params, self.vocabulary, max_active_dims)


def _by_token(folder: Path, checkpoint: Path, name: str, vocabulary: Vocabulary) -> FloatArray:
    """Token -> weight; what is not in the vocabulary is the unknown token, and the last of several counts."""
    place = next((place for place in (folder, checkpoint) if find(place, name) is not None), None)
    if place is None:
        raise CheckpointError(f"{folder / 'config.json'}: path {name!r} is neither in {folder} nor in {checkpoint}")
    weights, unknown = np.zeros(vocabulary.vocab_size, np.float32), vocabulary.special_ids.get("unk")
    for token, weight in read_json(place, name).items():
        token_id = vocabulary.token_id(token)
        token_id = unknown if token_id is None else token_id
        if token_id is None:
            raise CheckpointError(f"{place / name}: the token {token!r:.100} is not in the vocabulary")
        if type(weight) not in (int, float) or not abs(weight) <= _LARGEST:
            raise CheckpointError(f"{place / name}: {token!r:.100} is {weight!r:.100}; a finite number is needed")
        weights[token_id] = weight
    return weights
