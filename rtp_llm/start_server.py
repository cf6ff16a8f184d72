"""The documented entry: `python3 -m rtp_llm.start_server --checkpoint_path DIR …`."""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, TaskType
from rtp_llm.errors import ConfigError, EngineFailure, RtpError
from rtp_llm.flags import parse_args

logger = logging.getLogger("rtp_llm")

_FIRST_CALLS = {
    TaskType.RERANK: ("/v1/reranker", '{"query": "hello", "documents": ["hello world", "good night"]}'),
    TaskType.CUSTOM: ("/v1/custom", '{"input": ["hello", "hello world"], "extra": {}}'),
    TaskType.CLASSIFY: ("/v1/classifier", '{"input": ["hello"], "labels": true}'),
}
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(argv: Sequence[str] | None = None, prog: str = "rtp_llm.start_server") -> None:
    """Parse, load, serve until SIGTERM or SIGINT; exits 2 for a wrong option, 1 where starting fails."""
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, stream=sys.stderr)
    config = parse_args(sys.argv[1:] if argv is None else argv, os.environ, prog)
    logging.getLogger().setLevel(config.log_level.upper())
    try:
        serve(config)
    except RtpError as error:
        logger.error("%s", error.message)
        is_bad_value = isinstance(error, ConfigError) and error.param not in (None, "start_port", "grpc_port")
        sys.exit(2 if is_bad_value else 1)


def serve(config: ServerConfig) -> None:
    """Load the engine and answer HTTP, and gRPC, until told to stop; EngineFailure when the engine has ended itself."""
    from rtp_llm.engine.loading import load_engine
    from rtp_llm.server.app import check
    from rtp_llm.server.app import serve as serve_http

    check(config)
    engine = load_engine(config, config.model_name)
    # As a supervisor would end it: whoever waits is answered, and what follows exits with status 1.
    engine.device.on_failure = lambda: os.kill(os.getpid(), signal.SIGTERM)
    try:
        serve_http(engine, config, on_ready=lambda: _announce(engine.info(), config))
    finally:
        engine.close()
    if engine.device.failure is not None:
        raise EngineFailure(f"{engine.device.failure}: the server has ended, for whoever watches it to start it again")


def _announce(info: ModelInfo, config: ServerConfig) -> None:
    """The summary line, the address and a first call to try."""
    host = "localhost" if config.host in ("0.0.0.0", "::", "127.0.0.1") else config.host
    url = f"{'https' if config.ssl_certfile else 'http'}://{host}:{config.start_port}"
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
    logger.info("ready on %s (a page to try it, /docs, /metrics)", url)
    if config.grpc_port:
        logger.info("gRPC (tei.v1) on %s:%d", host, config.grpc_port)
    path, body = _FIRST_CALLS.get(info.tasks[0], ("/v1/embeddings", '{"input": ["hello", "world"]}'))
    logger.info("try: curl %s%s -H 'Content-Type: application/json' -d '%s'", url, path, body)


if __name__ == "__main__":
    main()
