"""Any load, for the simulator."""

import math

from hypothesis import strategies as st

from benchmarks.simulator import Arrival
from rtp_llm.engine.lane import Lane

_PATIENT = st.just(math.inf)


def arrivals(patience: st.SearchStrategy[float] = _PATIENT) -> st.SearchStrategy[list[Arrival]]:
    """Some requests of several inputs within three seconds, each with as much time as `patience` says."""
    lengths = st.lists(st.integers(1, 512), min_size=1, max_size=20)
    one = st.builds(Arrival, time=st.floats(0, 3), lengths=lengths, lane=st.sampled_from(Lane), patience=patience)
    return st.lists(one, max_size=40)
