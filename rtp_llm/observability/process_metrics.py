"""What is the process's and no model's: its health, its log, its memory, processor time and open files."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

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

        self._frontends = families.gauge("frontends", "Front-end processes; 0: one process does it all")
        self._frontends_memory = families.gauge("frontends_resident_memory_bytes", "Memory of all front-end processes")
        self._frontend_restarts = families.counter(
            "frontend_restarts", "Front-ends that have failed, and in whose place others were started"
        )

    def watch_frontends(self, processes: Callable[[], Sequence[int]]) -> None:
        """Publish how many there are, and their memory, by their process ids."""
        self._frontends.set_function(lambda: len(processes()))
        self._frontends_memory.set_function(lambda: sum(map(resident_bytes, processes())))

    def observe_frontend_restart(self) -> None:
        """A front-end has failed."""
        self._frontend_restarts.inc()

    def watch_health(self, is_ready: Callable[[], bool]) -> None:
        """Publish whether requests can be answered."""
        self._ready.set_function(lambda: float(is_ready()))

    def observe_lost_lines(self, count: int) -> None:
        """Lines of the log have been given up."""
        self._lost_lines.inc(count)


def resident_bytes(process: int | str = "self") -> int:
    """Memory of a process, by its id; 0 where it has ended, or the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
