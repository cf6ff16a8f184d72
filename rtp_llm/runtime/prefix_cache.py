"""Keys and values of the tokens that items begin with: an instruction, the query before a reranker's documents."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from rtp_llm.core import Item, KeptPrefix, Prefixes, PrefixKey


class PrefixCache:
    """The ones used last, in at most `max_bytes`. Safe to use from several threads.

    Whether a prefix is kept changes what is computed, never a bit of a result.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._entries: OrderedDict[PrefixKey, KeptPrefix] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, items: Sequence[Item]) -> Prefixes:
        """What these items need not bring; where there is a cache, what one item begins with may serve the next."""
        with self._lock:
            prefixes = Prefixes.find(items, self._entries, least=1 if self._max_bytes else 2)
            for prefix in prefixes.kept:
                self._entries.move_to_end(prefix.key)
        return prefixes

    def add(self, prefixes: Prefixes, layers: Sequence[Any], copy: Callable[[Any], Any]) -> None:
        """Keep the new ones; `layers` has each layer's keys and values [tokens, ·], prefix after prefix.

        `copy` makes what the model will get of a part of them: a slice would keep the memory of its neighbours.
        """
        start = 0
        for ids, adapter in zip(prefixes.new, prefixes.adapters, strict=True):
            end = start + len(ids)
            num_bytes = sum(layer[start:end].nbytes for layer in layers)
            if num_bytes <= self._max_bytes:
                tensors = [copy(layer[start:end]) for layer in layers]
                self._put(KeptPrefix(ids.tobytes(), tensors, num_bytes, adapter))
            start = end

    def _put(self, prefix: KeptPrefix) -> None:
        with self._lock:
            if prefix.key in self._entries:
                return
            self._entries[prefix.key] = prefix
            self.num_bytes += prefix.num_bytes
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= self._entries.popitem(last=False)[1].num_bytes
