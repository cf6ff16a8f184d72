"""What the commands share: standard output, whole files, and failures as one line with the right exit status."""

import errno
import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import orjson

from rtp_llm.config import EngineConfig
from rtp_llm.end_signals import handled_by
from rtp_llm.errors import RtpError
from rtp_llm.standard_streams import fill_closed

if TYPE_CHECKING:
    from rtp_llm.offline import Model

# What a shell reports of a program that SIGPIPE or SIGINT has ended; of any signal, this and its number.
_BROKEN_PIPE, _INTERRUPTED, _SIGNALLED = 141, 130, 128


class _Closed(io.TextIOBase):
    """Standard output that the caller has closed: what needs none runs, what writes fails with a word."""

    def write(self, text: str) -> int:
        raise OSError("standard output is closed")


def prepare() -> None:
    """Standard output in UTF-8, as files are read and written; a stream that the caller has closed gets a stand-in."""
    fill_closed()
    if sys.stdout is None:
        sys.stdout = _Closed()
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


@contextmanager
def failures_reported(prog: str) -> Iterator[None]:
    """What goes wrong becomes one line on standard error: status 2 for a bad value, 130 for an interrupt, else 1.

    A reader that has gone away (`| head`) ends the command silently, as it would end `cat`.
    """
    try:
        try:
            yield
        finally:
            # Not left to the interpreter, which would tell of a failure in lines of its own.
            write_out(flush=True)
    except BrokenPipeError:
        sys.exit(_BROKEN_PIPE)
    except KeyboardInterrupt:
        # A second one would only break off the threads' ending, with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _fail(prog, "interrupted", _INTERRUPTED)
    except RtpError as error:
        _fail(prog, error.message, 2 if error.param not in (None, "input") else 1)
    except OSError as error:
        _fail(prog, f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Within it, SIGTERM, SIGHUP and SIGQUIT end the command as an interrupt does, so that nothing half written stays.

    A second SIGQUIT ends it as it ever does: who presses it twice wants no more waiting.
    """

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL if number == quit_number else signal.SIG_IGN)
        sys.exit(_SIGNALLED + number)

    quit_number = getattr(signal, "SIGQUIT", None)
    with handled_by(end):
        yield


def _fail(prog: str, message: str, status: int) -> NoReturn:
    sys.stderr.write(f"{prog}: {message}\n")
    sys.exit(status)


def write_out(text: str = "", *, flush: bool = False) -> None:
    """To standard output; BrokenPipeError where its reader has gone, OSError where it is full or closed."""
    try:
        if text:
            sys.stdout.write(text)
        if flush:
            sys.stdout.flush()
    except OSError as error:
        if error.errno is None:
            raise
        # What is still buffered has nowhere to go; the interpreter would complain of it while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from None


def load(config: EngineConfig) -> "Model":
    """The library's model under a command's configuration."""
    from rtp_llm.offline import Model

    return Model(**asdict(config))


@contextmanager
def _named(path: str) -> Iterator[None]:
    """An OSError of the body that names no file is of this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename:
            raise
        raise OSError(error.errno, error.strerror, path) from None


@contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once all of it is written; a failure leaves what was there.

    It is made at once, beside `path`: a place that cannot be written is worth knowing before a model is loaded. What is
    no regular file, such as a pipe, is written as it stands. OSError names `path`, also where what it is on is full.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        with _named(path), target.open("wb") as file:
            yield file
        return
    if target.is_dir() or (target.exists() and not os.access(target, os.W_OK)):
        number = errno.EISDIR if target.is_dir() else errno.EACCES
        raise OSError(number, os.strerror(number), path)
    made, is_ours = target.with_name(f"{target.name}.{os.getpid()}.part"), True
    try:
        # NOTE: an interrupt may come as soon as the file is there.
        try:
            file = made.open("xb")
        except OSError as error:
            is_ours = False
            raise OSError(error.errno, error.strerror, path) from None
        with _named(path), file:
            yield file
        if target.exists():
            shutil.copymode(target, made)
        made.replace(target)
    except BaseException:
        if is_ours:
            made.unlink(missing_ok=True)
        raise


def json_line(value: Mapping[str, Any]) -> str:
    """A line of JSON; fp32 arrays in the shortest form that gives the same numbers back."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE).decode()


def in_a_line(text: str) -> str:
    """A text as it stands in a line of its own: of a table, it may have several."""
    return text.replace("\n", " ")


def tell_cuts(prog: str, model: "Model", inputs: str, way_out: str = "split them") -> None:
    """One line on standard error where some of the `inputs`, a number and what they are, were cut at the limit."""
    if model.num_truncated:
        limit = model.info.max_seq_len
        sys.stderr.write(
            f"{prog}: {model.num_truncated} of {inputs} were cut at the limit of {limit} tokens, and the rest of them "
            f"was not read: {way_out}, or raise --max_seq_len where the model was made for more\n"
        )


def progress() -> bool:
    """Whether somebody watches who would like a bar."""
    return sys.stderr.isatty()
