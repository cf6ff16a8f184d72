"""What the process tells of itself: metrics, request logs, traces; each is observed in one place."""

from rtp_llm.observability.metrics import CONTENT_TYPE, Metrics, RequestMetrics, Waiting, render
from rtp_llm.observability.process_metrics import ProcessMetrics, resident_bytes
from rtp_llm.observability.seen import Answered, Observer, Seen, server_timing

__all__ = [
    "CONTENT_TYPE",
    "Answered",
    "Metrics",
    "Observer",
    "ProcessMetrics",
    "RequestMetrics",
    "Seen",
    "Waiting",
    "render",
    "resident_bytes",
    "server_timing",
]
