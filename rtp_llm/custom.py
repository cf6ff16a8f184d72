"""What a user's own post-processing is given: the contract of `--custom_module FILE.py:Class`.

A class is made once, from a `CustomSource`, and called once for each request, with a `CustomRequest`; the guide is
docs/custom_postprocessing.md. Calls come from several threads at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rtp_llm.core import FloatArray, Int32Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CustomSource:
    """What the class is made from.

    folder       the checkpoint
    config       its config.json
    hidden_size  columns of the hidden states
    num_layers   of the model
    special_ids  role (cls, eos, pad, unk, …) -> token id
    piece        token id -> the vocabulary's own word
    token_id     the reverse; None for what is no word
    """

    folder: Path
    config: Mapping[str, Any]
    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    special_ids: Mapping[str, int]
    piece: Callable[[int], str]
    token_id: Callable[[str], int | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CustomRequest:
    """One request: n inputs in their order, and what else its caller had to say.

    hidden_states  n arrays fp32 [tokens, H], special tokens included; [layers, tokens, H] for a class with
                   `hidden_layers`; none for one whose `reads` is "embeddings"
    embeddings     fp32 [n, dim], the checkpoint's own, for one whose `reads` is "embeddings"; else [n, 0]
    input_ids      n arrays int32 [tokens]: what the model read, after truncation
    extra          the request's `extra`, an object of JSON
    """

    hidden_states: Sequence[FloatArray]
    embeddings: FloatArray
    input_ids: Sequence[Int32Array]
    extra: Mapping[str, Any]


class CustomModule(Protocol):
    """An instance of the user's class. It may also have these attributes, of the class or set when it is made:

    hidden_layers  which layers it reads, as in transformers' `output_hidden_states` (0: embeddings, -1: last layer)
    reads          "tokens": hidden states; "embeddings": the checkpoint's own vectors
    dimension      it returns one vector of this size for each input, so that it also answers /v1/embeddings
    """

    def __call__(self, request: CustomRequest) -> Any:
        """None, bool, int, float, str, numpy arrays, torch tensors, and lists and dicts of them."""
