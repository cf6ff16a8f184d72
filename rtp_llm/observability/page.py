"""docs/metrics.md: `python -m rtp_llm.observability.page`."""

import sys

from rtp_llm.observability.families import Described
from rtp_llm.observability.metrics import Metrics
from rtp_llm.observability.process_metrics import ProcessMetrics

_HEAD = """\
# Metrics

Generated from `rtp_llm/observability/metrics.py` by `make fix`. `GET /metrics` has them in Prometheus' text format,
beside the standard `process_*` ones: resident memory, processor seconds, open files, start time. Counters end in
`_total`; a histogram has `_bucket`, `_sum` and `_count`. Times are seconds, memory is bytes.

| metric | kind | labels | meaning |
|---|---|---|---|
"""


def described() -> list[Described]:
    """Every metric of ours, with all labels that its samples have."""
    of_models = [
        one._replace(labels=["model", *(label for label in one.labels if label != "model")])
        for one in Metrics().families.described
    ]
    return [*of_models, *ProcessMetrics().families.described]


def metrics_page() -> str:
    """The page, as it should be."""
    rows = [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.help} |"
        for one in described()
    ]
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
