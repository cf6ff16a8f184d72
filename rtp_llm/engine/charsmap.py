"""The check of a sentencepiece charsmap: the tokenizers library trusts it, and panics where a damaged one leads out."""

import numpy as np
import numpy.typing as npt

# The largest that exist, of nmt_nfkc_cf, have a third of a MB.
_MAX_BYTES = 4 << 20
_LABELS = np.arange(1, 256, dtype=np.uint32)
_AT_ONCE = 4096


def check_charsmap(charsmap: bytes) -> None:
    """ValueError unless each character's way through the trie stays inside it, and ends at whole characters.

    A charsmap has the trie's size in bytes, the trie, and texts that end in 0; a value in the trie is where one begins.
    Source: darts-clone's double array as the crate spm_precompiled reads it: bit 31 of a unit says that it is a value,
    bit 8 that one follows; bits 10 to 30, shifted by bit 9, lead on, and bits 0 to 7 are the byte that led here.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) > _MAX_BYTES or size < 4 or size % 4 or size > len(charsmap) - 4:
        raise ValueError(f"its charsmap of {len(charsmap):,} bytes cannot have a trie of {size:,}")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4)
    texts = charsmap[4 + size :]
    texts.decode("utf-8")
    begins = np.append(np.frombuffer(texts, np.uint8) & 0xC0 != 0x80, True)  # a character, or the end
    seen = np.zeros(len(units), dtype=bool)
    waiting = _offsets(units[:1])
    while waiting.size:
        now, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
        places = _inside((now[:, None] ^ _LABELS).ravel(), len(units))
        led = units[places] & 0x800000FF == np.tile(_LABELS, len(now))
        reached = units[places[led]]
        nodes = _inside(places[led] ^ _offsets(reached), len(units))
        values = units[nodes[reached >> 8 & 1 == 1]] & 0x7FFFFFFF
        if not begins[_inside(values, len(begins))].all():
            raise ValueError("its charsmap leads into the middle of a character")
        fresh = np.unique(nodes[~seen[nodes]])
        seen[fresh] = True
        waiting = np.concatenate([waiting, fresh])


def _offsets(units: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    offsets: npt.NDArray[np.uint32] = units >> np.uint32(10) << ((units & np.uint32(1 << 9)) >> np.uint32(6))
    return offsets


def _inside(places: npt.NDArray[np.uint32], size: int) -> npt.NDArray[np.uint32]:
    if places.size and places.max() >= size:
        raise ValueError("its charsmap leads out of itself")
    return places
