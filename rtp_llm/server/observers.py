"""Who keeps a record of requests, as the options ask for it."""

from rtp_llm.config import ServerConfig
from rtp_llm.observability import Observer
from rtp_llm.observability.logs import RequestLog
from rtp_llm.observability.tracing import Tracer


class Observers:
    """`all` of them. ConfigError where the libraries of one are not installed."""

    def __init__(self, config: ServerConfig) -> None:
        endpoint = config.traces_endpoint
        self._tracer = Tracer(endpoint, config.otlp_protocol) if endpoint else None
        self.all: list[Observer] = [self._tracer] if self._tracer else []
        if config.log_requests:
            self.all.append(RequestLog(config.log_requests, with_texts=config.log_texts))

    def close(self) -> None:
        """Send what is still to be sent."""
        if self._tracer is not None:
            self._tracer.close()
