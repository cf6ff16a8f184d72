"""Memory that the system refuses in the midst of a batch: that batch's own failure, and nobody else's."""

import subprocess
import sys

import pytest

# Attention's scratch is what no longer fits; the memory of activations is there already. Scores have a cap, without
# which tiles would take some keys at a time.
_CODE = """
import resource
import sys

import numpy as np

from rtp_llm.core import Batch
from rtp_llm.ops.native_ops import NativeOps

length, heads = 20_000, 2
ops = NativeOps(num_threads=int(sys.argv[1]), instruction_set=sys.argv[2])
qkv = ops.vector(np.random.default_rng(0).standard_normal((length, 3 * heads * 64), np.float32))

def attend():
    arrays = [np.zeros(length, np.int32) for _ in range(3)]
    batch = ops.upload(Batch(*arrays, np.array([0, length], np.int32), np.zeros(1, np.int32), length))
    last = np.array([length - 1], np.int32)
    shape = {"num_heads": heads, "num_kv_heads": heads, "head_dim": 64, "scale": 0.125, "softcap": 50.0}
    return ops.to_numpy(ops.attention(qkv, batch, **shape, rows=last))

ops.to_numpy(ops.l2_normalize(qkv))
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), limits[1]))
for _ in range(2):
    try:
        attend()
    except MemoryError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, limits)
print(np.array_equal(attend(), attend()))
"""


@pytest.mark.parametrize("num_threads", [1, 2])
def test_scratch_that_does_not_fit_is_an_error_of_that_batch(num_threads: int, instruction_set: str) -> None:
    command = [sys.executable, "-c", _CODE, str(num_threads), instruction_set]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    message = "no memory for the activations of a batch; lower max_context_batch_size"
    assert done.stdout.splitlines() == [message, message, "True"]
