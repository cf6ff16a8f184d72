"""`rtp-llm serve CHECKPOINT`."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """As `python3 -m rtp_llm.start_server`."""
    from rtp_llm.start_server import main as start

    start(argv, prog="rtp-llm serve")
