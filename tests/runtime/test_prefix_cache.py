"""What is kept of prefixes: the ones used last, within the bytes."""

import numpy as np

from rtp_llm.core import FloatArray, Item, Prefixes
from rtp_llm.runtime.prefix_cache import PrefixCache

LAYERS, WIDTH = 2, 6
BYTES_A_TOKEN = LAYERS * WIDTH * 4


def item(*prefix: int) -> Item:
    head = np.array(prefix, np.int32)
    return Item(np.append(head, np.int32(99)), 0, prefix=head.tobytes())


def computed(prefixes: Prefixes) -> list[FloatArray]:
    """Each layer's rows say which token they are of."""
    ids = np.concatenate(prefixes.new)
    return [np.repeat(ids[:, None] + 1000 * layer, WIDTH, axis=1).astype(np.float32) for layer in range(LAYERS)]


def use(cache: PrefixCache, *items: Item) -> Prefixes:
    prefixes = cache.find(items)
    if prefixes.new:
        cache.add(prefixes, computed(prefixes), np.copy)
    return prefixes


def test_new_then_kept() -> None:
    cache = PrefixCache(1 << 20)
    first = use(cache, item(1, 2, 3), item(7, 8), item(1, 2, 3))
    assert [ids.tolist() for ids in first.new] == [[1, 2, 3], [7, 8]] and not first.kept
    assert first.of_items.tolist() == [0, 1, 0] and first.skipped == [3, 2, 3]
    assert cache.num_bytes == 5 * BYTES_A_TOKEN
    again = use(cache, item(7, 8), item(4, 5))
    assert [ids.tolist() for ids in again.new] == [[4, 5]] and again.of_items.tolist() == [-2, 0]
    (kept,) = again.kept
    assert kept.num_tokens == 2 and [layer[:, 0].tolist() for layer in kept.layers] == [[7, 8], [1007, 1008]]


def test_the_one_not_used_for_longest_goes() -> None:
    cache = PrefixCache(5 * BYTES_A_TOKEN)
    use(cache, item(1, 2))
    use(cache, item(3, 4))
    use(cache, item(1, 2))
    use(cache, item(5, 6))
    assert cache.num_bytes == 4 * BYTES_A_TOKEN
    assert [bool(cache.find([item(*ids)]).kept) for ids in ((1, 2), (3, 4), (5, 6))] == [True, False, True]


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = PrefixCache(2 * BYTES_A_TOKEN)
    use(cache, item(1, 2))
    use(cache, item(1, 2, 3))
    assert cache.num_bytes == 2 * BYTES_A_TOKEN and cache.find([item(1, 2)]).kept


def test_without_a_cache_two_items_share() -> None:
    cache = PrefixCache(0)
    assert not cache.find([item(1, 2)]).new
    assert len(use(cache, item(1, 2), item(1, 2)).new) == 1 and cache.num_bytes == 0
