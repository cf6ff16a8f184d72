"""Which inputs were cut at the model's limit, in a header: most answers have no room to say so."""

from collections.abc import Callable

from rtp_llm.core import Response

_MOST_TOLD = 1000  # places: there are clients that read no header of more than 8 KB


def truncated_header(response: Response, named: Callable[[int], str] | None = None) -> tuple[bytes, bytes]:
    """The places of the inputs that were cut, with commas; after the first thousand `...` stands for the others.

    A place is a number where all inputs came in one field. Where they came in several, it is what `named` calls it.
    """
    cut = [place for place, was_cut in enumerate(response.truncated) if was_cut]
    fields = {_field(named(place)) for place in range(len(response.truncated))} if named and cut else set()
    name = named if named and len(fields) > 1 else str
    told = [name(place) for place in cut[:_MOST_TOLD]]
    return b"x-truncated", ",".join([*told, *(["..."] if len(cut) > _MOST_TOLD else [])]).encode()


def _field(name: str) -> str:
    """What has the input of this name, if it is one of a list; else the name."""
    return name.rpartition("[")[0] or name
