"""Jobs whose items no two are identical, and what a grant holds of them."""

import math
from concurrent.futures import Future
from itertools import count

import numpy as np

from rtp_llm.core import Item, Request
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.scheduler import Grant

_ids = count()


def make_job(*lengths: int, lane: Lane = Lane.INTERACTIVE, deadline: float = math.inf) -> tuple[Job, list[Item]]:
    """Items of these lengths, no two of which are identical."""
    job = Job(Request(inputs=["x"] * len(lengths), deadline=deadline), Future(), lane=lane)
    items = [Item(np.full(length, next(_ids), np.int32), index, owner=job) for index, length in enumerate(lengths)]
    return job, items


def lengths(grant: Grant | None) -> list[int]:
    assert grant is not None
    return [item.num_tokens for item in grant.items]
