"""What is the process's and no model's: its health, its log, its memory, processor time and open files."""

from collections.abc import Callable

from prometheus_client import ProcessCollector

from rtp_llm.observability.families import Families


class ProcessMetrics:
    """Gauges and counters of the process, without the label `model`."""

    def __init__(self) -> None:
        self.families = families = Families()
        # Under the names that all Prometheus clients use: process_...
        ProcessCollector(registry=families.registry)
        self._ready = families.gauge("ready", "1 while requests can be answered, as /health says")
        self._lost_lines = families.counter(
            "lost_log_lines", "Lines of the log that could not be written, or not in time"
        )

    def watch_health(self, is_ready: Callable[[], bool]) -> None:
        """Publish whether requests can be answered."""
        self._ready.set_function(lambda: float(is_ready()))

    def observe_lost_lines(self, count: int) -> None:
        """Lines of the log have been given up."""
        self._lost_lines.inc(count)
