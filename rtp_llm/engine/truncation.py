"""How many tokens of a pair over the limit stay, by the rules of transformers and of FlagEmbedding."""


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many of a pair's tokens stay: the longer loses first. Source: tokenizers, utils/truncation.rs."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    # A tie counts as the first being the shorter.
    kept = (short, long) if first <= second else (long, short)
    return min(first, kept[0]), min(second, kept[1])


def only_second(first: int, second: int, room: int, limit: int) -> tuple[int, int]:
    """How many of a pair's tokens stay: three quarters of `limit` of the first, then what fits of the second.

    Source: FlagEmbedding, inference/reranker/encoder_only/base.py. Where a tiny limit leaves the second nothing, the
    first is cut to the room.
    """
    first = min(first, limit * 3 // 4, room)
    return first, min(second, room - first)


def only_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many of a pair's tokens stay: all of the second, which are fewer than fit, and of the first what does too."""
    return min(first, room - second), second
