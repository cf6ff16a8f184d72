"""docs/metrics.md: `python -m rtp_llm.observability.page`."""

import sys

from rtp_llm.observability.metrics import Metrics

_HEAD = """\
# Metrics

Generated from `rtp_llm/observability/metrics.py` by `make fix`. `GET /metrics` has them in Prometheus' text format,
beside the standard `process_*` ones: resident memory, processor seconds, open files, start time. Counters end in
`_total`; a histogram has `_bucket`, `_sum` and `_count`. Times are seconds, memory is bytes. Each has the label `model`
too.

| metric | kind | labels | meaning |
|---|---|---|---|
"""


def metrics_page() -> str:
    """The page, as it should be."""
    rows = [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.help} |"
        for one in Metrics().described
    ]
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
