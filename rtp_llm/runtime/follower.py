"""A rank of a tensor-parallel model other than the first: a process that rank 0 starts.

The order comes as a line of JSON on standard input; when that closes, rank 0 has ended. Standard output says `imported`
and `loaded` when that is so.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rtp_llm.checkpoint import open_tensors
from rtp_llm.errors import RtpError, in_one_line, one_line


def main() -> None:
    """Load the part, follow rank 0 to its end; status 1 with one line in the log where that fails."""
    order = json.loads(sys.stdin.readline())
    name = f"rank {order['rank']}"
    logging.basicConfig(level=logging.INFO, format=f"%(levelname)s {name}: %(message)s", stream=sys.stderr)
    threading.Thread(target=_end_with_leader, daemon=True).start()
    say = _words_for_leader()
    try:
        _follow(order, say)
    except Exception as error:  # the border: whatever ends a rank is one line
        logging.error("%.300s", one_line(error.message) if isinstance(error, RtpError) else in_one_line(error))
        # Not sys.exit: a collective that hangs would keep the process, as the thread that reads would.
        os._exit(1)
    os._exit(0)


def _follow(order: dict[str, Any], say: Callable[[str], None]) -> None:
    from rtp_llm.ops.device_ops import make_ops
    from rtp_llm.runtime import torch_parallel
    from rtp_llm.runtime.torch_device import open_device

    device = open_device(order["device"])
    say("imported")
    rank, size = order["rank"], order["size"]
    group = torch_parallel.Group(rank, size, order["rendezvous"], device.torch_device)
    ops = make_ops(order["backend"], order["device"], order["dtype"], gelu=order["gelu"])
    source = open_tensors(Path(order["folder"]))
    model, ops = torch_parallel.load_rank(order["model_type"], order["hf"], source, ops, group, rank, size)
    source.close()
    device.synchronize()
    say("loaded")
    torch_parallel.follow(model, ops, device, group)
    group.close()


def _words_for_leader() -> Callable[[str], None]:
    """Says a word on standard output, which is no one else's from now on: what libraries print there goes to the log.

    NCCL_DEBUG=INFO makes NCCL do so: rank 0 would take it for a word, and a pipe that nobody reads would fill up.
    """
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(word: str) -> None:
        output.write(f"{word}\n")
        output.flush()

    return say


def _end_with_leader() -> None:
    sys.stdin.read()
    # Some time to end in order, when it was rank 0's wish.
    threading.Event().wait(3)
    os._exit(1)
