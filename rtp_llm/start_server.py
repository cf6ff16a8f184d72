"""The documented entry: `python3 -m rtp_llm.start_server --checkpoint_path DIR …`."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, TaskType
from rtp_llm.errors import ConfigError, EngineFailure, RtpError
from rtp_llm.flags import parse_serve
from rtp_llm.observability import Observer, ProcessMetrics
from rtp_llm.observability.log_output import LogOutput
from rtp_llm.observability.logs import adjust, set_up
from rtp_llm.served_models import ServedModel, served_models
from rtp_llm.standard_streams import fill_closed

if TYPE_CHECKING:
    from rtp_llm.engine.engine import Engine

logger = logging.getLogger("rtp_llm")

_FIRST_CALLS = {
    TaskType.RERANK: ("/v1/reranker", '{"query": "hello", "documents": ["hello world", "good night"]}'),
    TaskType.CUSTOM: ("/v1/custom", '{"input": ["hello", "hello world"], "extra": {}}'),
    TaskType.CLASSIFY: ("/v1/classifier", '{"input": ["hello"], "labels": true}'),
    TaskType.TOKEN_CLASSIFY: ("/v1/classifier", '{"input": ["My name is Sarah and I live in London."]}'),
}
_CLOSING = 30.0  # seconds for the step that is being computed


def main(argv: Sequence[str] | None = None, prog: str = "rtp_llm.start_server") -> None:
    """Parse, load, serve until SIGTERM or SIGINT; exits 2 for a wrong option, 1 where starting fails."""
    fill_closed()
    output = set_up()
    config, given = parse_serve(sys.argv[1:] if argv is None else argv, os.environ, prog)
    adjust(output, config.log_level, config.log_format)
    try:
        serve(config, served_models(config, given), output)
    except KeyboardInterrupt:
        logger.info("interrupted before the server was ready")
        sys.exit(130)
    except RtpError as error:
        logger.error("%s", error.message)
        is_bad_value = isinstance(error, ConfigError) and error.param not in (None, "start_port", "grpc_port")
        sys.exit(2 if is_bad_value else 1)


def serve(config: ServerConfig, models: Sequence[ServedModel], output: LogOutput) -> None:
    """Load the models and answer HTTP, and gRPC, until told to stop; EngineFailure when the engine has ended itself."""
    from rtp_llm.engine.loading import load_engines
    from rtp_llm.server.app import check
    from rtp_llm.server.garbage import collect_seldom
    from rtp_llm.server.observers import Observers

    check(config)
    observers = Observers(config)
    engines = load_engines(models)
    device = engines[0].device
    # As a supervisor would end it: whoever waits is answered, and what follows exits with status 1.
    device.on_failure = lambda: os.kill(os.getpid(), signal.SIGTERM)
    collect_seldom()
    process = ProcessMetrics()
    output.on_lost = process.observe_lost_lines
    ended_in_order = False
    try:
        announce = partial(_announce, [engine.info() for engine in engines], config, output)
        if device.failure is None:  # else it failed while others were loaded, when nobody was told
            ended_in_order = _serve_clients(engines, config, announce, observers.all, process)
    finally:
        device.close(timeout=_CLOSING if ended_in_order else 0)
        if ended_in_order:
            observers.close()
    if device.failure is not None:
        raise EngineFailure(f"{device.failure}: the server has ended, for whoever watches it to start it again")


def _serve_clients(
    engines: "Sequence[Engine]",
    config: ServerConfig,
    announce: Callable[[int], None],
    observers: Sequence[Observer],
    process: ProcessMetrics,
) -> bool:
    """In this process, or by front-ends -> whether it has ended in order."""
    if config.frontend_server_count > 1:
        from rtp_llm.frontends.supervisor import serve as serve_by_frontends

        return serve_by_frontends(engines, config, process, announce)
    from rtp_llm.server.app import serve as serve_http

    return serve_http(engines, config, announce, observers, process)


def _announce(models: Sequence[ModelInfo], config: ServerConfig, output: LogOutput, port: int) -> None:
    """A line for each model, the address and a first call to try; `port` is what the system chose for port 0.

    They are written when this returns, and so before the first answer is.
    """
    from rtp_llm.server.app import EVERYWHERE, warn_if_open
    from rtp_llm.server.listening import in_url

    host = "localhost" if config.host in (*EVERYWHERE, "127.0.0.1") else in_url(config.host)
    url = f"{'https' if config.ssl_certfile else 'http'}://{host}:{port}"
    for info in models:
        _summarise(info)
    warn_if_open(config)
    logger.info("ready on %s (a page to try it, /docs, /metrics)", url)
    if config.grpc_port:
        logger.info("gRPC (tei.v1) on %s:%d", host, config.grpc_port)
    path, body = _FIRST_CALLS.get(models[0].tasks[0], ("/v1/embeddings", '{"input": ["hello", "world"]}'))
    key = " -H 'Authorization: Bearer KEY'" if config.api_key or config.api_key_file else ""
    logger.info("try: curl %s%s%s -H 'Content-Type: application/json' -d '%s'", url, path, key, body)
    output.flush()


def _summarise(info: ModelInfo) -> None:
    logger.info(
        "%s: %s, task %s, %s ops (%s, %s), %d threads, %d dimensions, inputs up to %d tokens, steps up to %d tokens",
        info.name,
        info.model_type,
        "+".join(task.value for task in info.tasks),
        info.backend,
        info.instruction_set,
        info.dtype,
        info.num_threads,
        info.dimension,
        info.max_seq_len,
        info.max_batch_tokens,
    )


if __name__ == "__main__":
    main()
