"""Inputs of a model with routes: each is read by the tokenizer of its own, under the prompt that goes with it.

Equals the tokens of sentence-transformers' `encode_query`, `encode_document`, and `encode` where nothing is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rtp_llm.core import Input, Item, Params
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.modules import Router


@dataclass(slots=True, eq=False)
class LookedUp(Item):
    """An item whose answer is made of its tokens: nothing is computed for it, and it waits for nothing."""


class RouteEncoder:
    """Encodes each input by its route; `looked_up` are the tokenizers of the routes that run no model."""

    def __init__(self, tokenizer: Tokenizer, router: Router, looked_up: Mapping[str, Tokenizer]) -> None:
        self._tokenizer = tokenizer
        self._router = router
        self._looked_up = looked_up

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """An Item per input, in order; InvalidRequest as `Tokenizer.encode`, and where an input has no route."""
        items: list[Item] = []
        for name, run in groupby(enumerate(inputs, start), lambda entry: params.prompt_name_of(entry[0])):
            values = [value for _, value in run]
            own = replace(params, prompt_name=params.prompt_name or name)
            tokenizer = self._looked_up.get(self._router.route(name))
            if tokenizer is None:
                items += self._tokenizer.encode(values, own, start + len(items))
                continue
            # Such a table has weights for words; sentence-transformers adds no special token for it either.
            bare = replace(own, add_special_tokens=False)
            for item in tokenizer.encode(values, bare, start + len(items)):
                items.append(LookedUp(item.input_ids, item.index, truncated=item.truncated))
        return items
