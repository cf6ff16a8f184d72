"""Which inputs were cut at the model's limit, in a header: most answers have no room to say so."""

from collections.abc import Callable

from rtp_llm.core import Response

HEADER = "x-truncated"
_MOST_TOLD, _MOST_BYTES = 1000, 6000  # there are clients that read no header of more than 8 KB


class CutPlaces:
    """Places of inputs that were cut, as many as a header has room for; `...` stands for the others."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._told: list[str] = []
        self._room = most_bytes
        self._are_all = True

    def add(self, *places: str) -> None:
        """The next ones; after the first that has no room, none is told."""
        for place in places:
            self._room -= len(place) + 1
            self._are_all = self._are_all and self._room >= 0 and len(self._told) < _MOST_TOLD
            if self._are_all:
                self._told.append(place)

    def __bool__(self) -> bool:
        return bool(self._told)

    def __str__(self) -> str:
        return ",".join(self._told if self._are_all else [*self._told, "..."])


def cut_places(response: Response, named: Callable[[int], str] | None = None) -> list[str]:
    """The places of the inputs that were cut.

    A place is a number where all inputs came in one field. Where they came in several, it is what `named` calls it.
    """
    cut = [place for place, was_cut in enumerate(response.truncated) if was_cut]
    fields = {_field(named(place)) for place in range(len(response.truncated))} if named and cut else set()
    name = named if named and len(fields) > 1 else str
    return [name(place) for place in cut]


def truncated_header(response: Response, named: Callable[[int], str] | None = None) -> tuple[bytes, bytes]:
    """`cut_places` with commas; empty where nothing was cut."""
    places = CutPlaces()
    places.add(*cut_places(response, named))
    return HEADER.encode(), str(places).encode()


def _field(name: str) -> str:
    """What has the input of this name, if it is one of a list; else the name."""
    return name.rpartition("[")[0] or name
