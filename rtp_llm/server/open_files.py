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
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return
    if hard < _LEAST:
        raise ConfigError(
            f"this process may open {hard} files, and needs {_LEAST} at least: raise the limit (ulimit -n)"
        )
    if hard < config.concurrency_limit + _LEAST:
        logger.warning(
            "this process may open %d files, and concurrency_limit is %d: connections beyond that will be reset; "
            "raise the limit (ulimit -n)",
            hard,
            config.concurrency_limit,
        )
