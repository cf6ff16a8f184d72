"""What was found out of prompts, which callers may write: of the last ones, in a bounded number of characters."""

import threading
from typing import Generic, TypeVar

Value = TypeVar("Value")

_MOST_CHARACTERS = 1 << 20
# What an entry takes beside its prompt, in characters.
_ENTRY = 256


class PromptCache(Generic[Value]):
    """Values by prompt, and by whether special tokens stand around it. Any number of threads may use it at once."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, bool], Value] = {}
        self._num_characters = 0
        self._lock = threading.Lock()

    def get(self, prompt: str, *, special: bool = True) -> Value | None:
        """What is known of it; None: nothing."""
        return self._values.get((prompt, special))

    def put(self, prompt: str, value: Value, *, special: bool = True) -> None:
        """Know it from now on; where there are too many, all others are forgotten."""
        with self._lock:
            self._num_characters += len(prompt) + _ENTRY
            if self._num_characters > _MOST_CHARACTERS:
                self._values.clear()
                self._num_characters = len(prompt) + _ENTRY
            self._values[prompt, special] = value
