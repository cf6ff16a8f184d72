"""A process of a benchmark's own, behind a pipe."""

from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess


def end(process: SpawnProcess, pipe: Connection) -> None:
    """Hang up, and wait until it has ended; one that does not is terminated."""
    pipe.close()
    process.join(10)
    if process.is_alive():
        process.terminate()
        process.join()
