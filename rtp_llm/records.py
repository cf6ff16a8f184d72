"""Dataclasses that nobody changes, and that every request makes some of."""

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass

    def record(*, frozen, eq=True, **options):
        """`dataclass` with `frozen=True`, which mypy holds all code to. At run time nothing does.

        NOTE: dataclass itself holds to it by setting each field past its own refusal, which takes four times as long:
        with 20 fields 5.4 us instead of 1.4, and a request makes six such objects.
        """
        assert frozen
        return dataclass(eq=eq, unsafe_hash=eq, **options)


Record = TypeVar("Record")


def changed(given: Record, **changes: Any) -> Record:
    """`replace` for a record with slots, in half the time: nothing is checked, and no default is made."""
    new = object.__new__(type(given))
    for name in given.__slots__:  # type: ignore[attr-defined]
        setattr(new, name, changes[name] if name in changes else getattr(given, name))
    return new


__all__ = ["changed", "record"]
