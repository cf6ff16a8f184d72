"""`linked`: a folder of links to files of several, for as long as they are read.

What goes wrong meanwhile is said of the files themselves: the links' names mean nothing to who asked.
"""

import atexit
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rtp_llm.end_signals import handled_by
from rtp_llm.errors import RtpError


@contextmanager
def linked(own: Path, entries: Mapping[str, Path], *, keep: bool = False) -> Iterator[Path]:
    """A temporary folder with the name of `own`, in which each name is a link to its file.

    own      what an error names where it is about the folder, or a file that it has not
    entries  name -> file or folder
    keep     until the process ends, since code of others may read it at any time
    """
    root = Path(tempfile.mkdtemp(prefix="rtp_llm_"))
    folder = root / (own.name or "adapter")
    if keep:
        atexit.register(shutil.rmtree, root, ignore_errors=True)
    try:
        with _removed_by_signals(root):
            folder.mkdir()
            for name, target in entries.items():
                (folder / name).symlink_to(target.absolute())
            yield folder
    except RtpError as error:
        error.message = _of_own_files(error.message, folder, own, entries)
        error.args = (error.message,)
        raise
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


def _of_own_files(message: str, folder: Path, own: Path, entries: Mapping[str, Path]) -> str:
    # The longest first: config.json is the beginning of config.json.old.
    for name in sorted(entries, key=len, reverse=True):
        message = message.replace(str(folder / name), str(entries[name]))
    return message.replace(str(folder), str(own))


@contextmanager
def _removed_by_signals(root: Path) -> Iterator[None]:
    """Within it, a signal that ends the process at once removes the folder first; whoever has a handler keeps it."""
    owner = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() == owner:  # else a fork
            shutil.rmtree(root, ignore_errors=True)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    is_main = threading.current_thread() is threading.main_thread()  # others may set no handler
    with handled_by(end) if is_main else nullcontext():
        yield
