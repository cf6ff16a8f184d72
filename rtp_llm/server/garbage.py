"""How often Python looks for garbage: seldom, since requests leave none."""

import gc

# New objects before the youngest are looked through. Python's own 700 are those of a dozen requests: with thousands in
# flight they are looked through again and again, while all threads wait: a quarter of the event loop's time.
_YOUNG_OBJECTS = 20_000


def collect_seldom() -> None:
    """Take what is alive out of every further search, and search seldom; for a process whose work is to serve.

    Counting references frees all that a request or a connection leaves (tests/server/test_garbage.py). What of it is
    in a cycle after all, such as the traceback of a failure, is found later than usual.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
