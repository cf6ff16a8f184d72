"""Code that is not ours: a class of a user's file, and its failures told by the file's name and line."""

import ast
import dis
import importlib
import inspect
import logging
import re
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from rtp_llm.errors import ConfigError, CustomModuleError, InvalidRequest, RtpError, one_line

logger = logging.getLogger(__name__)

_MAX_MESSAGE = 500
# The folders of an absolute path, which are no client's business.
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\":]+/)+")


def load_class(file: Path, name: str) -> Any:
    """The class `name` of `file`, which is run as a module; it may import what lies beside it, by name or relatively.

    ConfigError: there is no such file or class, or running it fails.
    """
    file = file.absolute()
    if not file.is_file():
        raise ConfigError(f"{file} is not there; {name} should be a class in it")
    with loading(file):
        module = _run(file)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        own = ", ".join(key for key in classes if isinstance(getattr(module, key), type)) or "no class at all"
        raise ConfigError(f"{file} has no class {name}; it has {own}")
    return found


def _run(file: Path) -> ModuleType:
    """The file as a module of a package that stands for its folder."""
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    package = ModuleType(f"_rtp_llm_user_{abs(hash(folder)):x}")
    package.__path__ = [folder]
    sys.modules.setdefault(package.__name__, package)
    spec = spec_from_file_location(f"{package.__name__}.{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    # Where dataclasses and pickle look for the classes of a module.
    sys.modules[spec.name] = module
    importlib.invalidate_caches()
    spec.loader.exec_module(module)
    return module


@contextmanager
def loading(file: Path, line: int | None = None) -> Iterator[None]:
    """Around a user's code while a server starts: what it raises becomes a ConfigError of one line; see `describe`."""
    try:
        yield
    except CustomModuleError as error:
        raise ConfigError(f"{file.parent}/{error.message}") from error
    except (RtpError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the border: a user's code may raise anything, SystemExit included
        logger.debug("%s failed", file, exc_info=error)
        raise ConfigError(f"{file.parent}/{describe(error, file, line)}") from error


@contextmanager
def running(file: Path, line: int | None = None) -> Iterator[None]:
    """Around a user's code in a request: a ValueError that it raises is the caller's fault, anything else its own."""
    try:
        yield
    except RtpError:
        raise
    except BaseException as error:  # the border, as above; a batch thread must survive it
        # Python interrupts the main thread alone; elsewhere it is the user's code that raises this.
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        if isinstance(error, ValueError) and _is_raised_by(error.__traceback__, file):
            raise InvalidRequest(_text_of(error) or "the custom module refused this request") from error
        logger.error("%s failed", file, exc_info=error)
        raise CustomModuleError(_FOLDERS.sub("", describe(error, file, line))) from error


def describe(error: BaseException, file: Path, line: int | None = None) -> str:
    """`postprocess.py:17: KeyError: 'tenant'`: the innermost line in `file`, or in one beside it, and the error.

    `line` is told where none of the user's lines was reached, as for a wrong number of arguments.
    """
    name = file.name
    for frame, number in traceback.walk_tb(error.__traceback__):
        if _is_beside(frame.f_code.co_filename, file):
            name, line = Path(frame.f_code.co_filename).name, number
    text = _text_of(error)
    if isinstance(error, SyntaxError) and _is_beside(error.filename or "", file):
        name, line, text = Path(str(error.filename)).name, error.lineno, error.msg
    place = name if line is None else f"{name}:{line}"
    kind = type(error).__name__
    return f"{place}: {kind}: {text}" if text else f"{place}: {kind}"


def line_of(made: type, file: Path) -> int | None:
    """Where `file` begins the class; None where it was made some other way."""
    try:
        return inspect.getsourcelines(made)[1] if inspect.getsourcefile(made) == str(file) else None
    except (OSError, TypeError):
        return None


def line_of_return(made: type, method: str, file: Path) -> int | None:
    """Where the method returns its value, or where it begins if it may do so in several places; None: not in `file`."""
    function = getattr(made, method, None)
    try:
        if function is None or inspect.getsourcefile(function) != str(file):
            return line_of(made, file)
        lines, first = inspect.getsourcelines(function)
        (tree,) = ast.parse(textwrap.dedent("".join(lines))).body
    except (OSError, SyntaxError, TypeError, ValueError):
        return line_of(made, file)
    returns = list(_returns(tree))
    return first + (returns[0].lineno if len(returns) == 1 else getattr(tree, "lineno", 1)) - 1


def _returns(node: ast.AST) -> Iterator[ast.Return]:
    """Those of a function, and none of the functions within it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Return):
            yield child
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            yield from _returns(child)


def _is_beside(filename: str, file: Path) -> bool:
    return Path(filename).parent == file.parent


def _text_of(error: BaseException) -> str:
    return one_line(error)[:_MAX_MESSAGE]


def _is_raised_by(trace: TracebackType | None, file: Path) -> bool:
    """Whether the innermost frame is the user's and stands at a `raise`: numpy's own errors have no frame."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    return _is_beside(code.co_filename, file) and dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
