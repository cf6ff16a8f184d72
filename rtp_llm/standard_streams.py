"""Standard input, output and error of a process whose caller has closed them."""

import os

_ALL = 3  # descriptors


def fill_closed() -> None:
    """Open /dev/null in the place of each that is closed.

    Else what is opened next has its number, such as a client's connection, and gets what is meant for the log or what a
    library prints; and libuv ends the process when it is to close one of them.
    """
    for descriptor in range(_ALL):
        try:
            os.fstat(descriptor)
        except OSError:
            # The least free number is what the system gives, and those below are in use by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
