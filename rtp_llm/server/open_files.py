"""How many files, and so connections, this process may open."""

import logging
import sys

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError

logger = logging.getLogger(__name__)

# Libraries, weights, the log, the event loop, one connection.
_LEAST = 64


def allow_open_files(config: ServerConfig) -> None:
    """Take as many as the system gives without asking more of it; ConfigError where that is too few to start.

    A connection that finds none is reset, and nobody is told: the log says here that it may come to that.
    """
    if sys.platform == "win32":
        return
    limit = _raised_limit()
    if limit is None:
        return
    if limit < _LEAST:
        raise ConfigError(
            f"this process may open {limit} files, and needs {_LEAST} at least: raise the limit (ulimit -n)"
        )
    if limit < config.concurrency_limit + _LEAST:
        logger.warning(
            "this process may open %d files, and concurrency_limit is %d: connections beyond that will be reset; "
            "raise the limit (ulimit -n)",
            limit,
            config.concurrency_limit,
        )


def _raised_limit() -> int | None:
    """How many files this process may open from now on; None: any number."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:  # macOS takes no infinity here, a sandbox may take nothing
            logger.info("the limit of open files stays at %d: %s", soft, error)
            return soft
    return None if hard == resource.RLIM_INFINITY else hard
