"""How another process of this package is started."""

import sys


def command_of(module: str) -> tuple[str, ...]:
    """The command that calls `main` of a module, for its arguments to follow.

    NOTE: not by -m, which looks for modules in the working directory first, even where this process does not: whatever
    lies there under the name of a library would be run.
    """
    return sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"
