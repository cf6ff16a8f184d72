"""Inputs of a late-interaction model: queries and documents have prompts and limits of their own, queries an expansion.

Equals the tokens of sentence-transformers' MultiVectorEncoder, `encode_query` and `encode_document`.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from rtp_llm.core import Input, Item, Params
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import CheckpointError
from rtp_llm.late_interaction import LateInteraction


class LateEncoder:
    """Encodes queries and documents, as `Params.is_query` tells them apart; ready token ids pass as they are."""

    def __init__(self, tokenizer: Tokenizer, late: LateInteraction, max_seq_len: int) -> None:
        """`max_seq_len`: the flag, which stands over the checkpoint's limit of documents; 0: it is not there.

        CheckpointError where the tokenizer lacks the token of the expansion.
        """
        limits = {**late.limits, **({"document": max_seq_len} if max_seq_len else {})}
        self._sides = {side: tokenizer.limited(Params(max_tokens=limit)) for side, limit in limits.items()}
        self._length, self._attends = 0, False
        if late.expansion is not None:
            self._length = min(late.expansion.length, tokenizer.max_seq_len)
            self._attends = late.expansion.attends
            self._token_id = _expansion_id(tokenizer, late.expansion.token)

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """An Item per input, in order; InvalidRequest as `Tokenizer.encode`."""
        items: list[Item] = []
        for is_query, run in groupby(enumerate(inputs, start), lambda entry: params.is_query(entry[0])):
            values = [value for _, value in run]
            side = "query" if is_query else "document"
            own = replace(params, prompt_name=params.prompt_name or side)
            encoded = self._sides[side].encode(values, own, start + len(items))
            if is_query:
                for item, value in zip(encoded, values, strict=True):
                    self._expand(item, value)
            items += encoded
        return items

    def _expand(self, item: Item, value: Input) -> None:
        """A text's tokens and the expansion's after them."""
        count = self._length - item.num_tokens
        if count < 1 or isinstance(value, list):
            return
        item.input_ids = np.append(item.input_ids, np.full(count, self._token_id, np.int32))
        item.num_unseen = 0 if self._attends else count
        if item.token_type_ids is not None:
            item.token_type_ids = np.append(item.token_type_ids, np.zeros(count, np.int32))


def _expansion_id(tokenizer: Tokenizer, token: str | None) -> int:
    ids = tokenizer.special_ids
    token_id = tokenizer.token_id(token) if token is not None else ids.get("mask", ids.get("eos"))
    if token_id is None:
        wanted = "a mask or an eos token" if token is None else f"the token {token!r}"
        raise CheckpointError(f"query_expansion: the tokenizer lacks {wanted}, of which it is made")
    return token_id
