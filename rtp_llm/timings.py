"""How long each stage of a request took."""

from rtp_llm.records import record


@record(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds spent in each stage of one request, which started at `started_at` as time.perf_counter() counts."""

    started_at: float = 0.0
    tokenize: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    total: float = 0.0
