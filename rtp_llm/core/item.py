"""What a tokeniser makes of a request: sequences of token ids, each with what it needs to find its way back."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from rtp_llm.core.arrays import Int32Array
from rtp_llm.core.request import TaskType

ID_BYTES = 4  # of a token id in `Item.prefix`
NO_ADAPTER = -1  # the number of none


class Chunk(NamedTuple):
    """Which of its input's chunks an item is, and what it weighs in their mean."""

    place: int
    num_chunks: int
    weight: int


@dataclass(slots=True, eq=False)
class Item:
    """One tokenised sequence of a request, to be answered by `tasks`: `index` is its place among the inputs.

    input_ids, token_type_ids  [T]; no types: all 0
    prompt_length  leading tokens that are its prompt's
    truncated      whether its input was longer than what was kept
    owner          the engine's Job that waits for its rows
    queued         whether it waits in a queue
    prefix         leading token ids that other items have too, as bytes; they are part of `input_ids`
    chunk          of an item that is a part of its input
    parts          of an item that is several inputs, from `index` on: how many tokens each of them has; (): one input
    num_unseen     tokens at its end that see those before them, and are seen by none
    spans          [T, 2], where entities are wanted: the characters of its text that a token stands for; -1: none
    adapter        the number of the adapter (LoRA) that it is computed with, of the model's
    """

    input_ids: Int32Array
    index: int
    token_type_ids: Int32Array | None = None
    prompt_length: int = 0
    truncated: bool = False
    tasks: tuple[TaskType, ...] = ()
    owner: Any = None
    queued: bool = False
    prefix: bytes = b""
    chunk: Chunk | None = None
    parts: tuple[int, ...] = ()
    num_unseen: int = 0
    spans: Int32Array | None = None
    adapter: int = NO_ADAPTER

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_own_tokens(self) -> int:
        """Tokens that are not part of the prefix."""
        return len(self.input_ids) - len(self.prefix) // ID_BYTES
