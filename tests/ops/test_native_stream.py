"""Recording: memory of dropped tensors, of host arrays, of batches that failed."""

import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.native_stream import COPY_COLUMNS
from tests.ops.data import batch_of, encoder, normal


def test_memory_of_dropped_results_is_used_again(ops: NativeOps) -> None:
    x, rotation = normal(64, 64), np.eye(64, dtype=np.float32)[::-1]
    weight = ops.matrix(rotation)
    y, expected = ops.vector(x), x
    for _ in range(50):
        y = ops.linear(y, weight)
        expected = expected @ rotation.T
    np.testing.assert_array_equal(ops.to_numpy(y), expected)


def capacity(ops: NativeOps) -> int:
    return int(ops._library.arena_capacity(ops._stream.handle))


def test_the_arena_gives_a_large_batch_back(ops: NativeOps) -> None:
    encoder(ops, batch_of([1000]))
    large = capacity(ops)
    for _ in range(100):
        encoder(ops, batch_of([5]))
    assert capacity(ops) < large / 2


def test_the_arena_does_not_grow_in_steady_state(ops: NativeOps) -> None:
    sizes = []
    for _ in range(5):
        encoder(ops, batch_of([600, 300]))
        sizes.append(capacity(ops))
    assert len(set(sizes[1:])) == 1


def test_batches_of_all_sizes_leave_no_holes(ops: NativeOps) -> None:
    """On a thread of its own, since malloc gives each a heap, with small things that stay between what is freed."""
    weight, kept, sizes = ops.matrix(normal(1024, 8)), [], np.random.default_rng(0).integers(1, 4000, 160)

    def run(num_rows: int) -> None:
        ops.upload(batch_of([num_rows]))
        ops.to_numpy(ops.rows(ops.linear(ops.vector(normal(num_rows, 8)), weight), np.zeros(1, np.int32)))
        kept.append(bytearray(4000))

    def run_all() -> None:
        for start in range(0, len(sizes), 4):
            for num_rows in [*sizes[start : start + 4], *[5] * 25]:
                run(int(num_rows))

    before = anonymous_megabytes()
    thread = Thread(target=run_all)
    thread.start()
    thread.join()
    assert len(kept) == 40 * 29 and anonymous_megabytes() - before < 40


def anonymous_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return float(status.partition("RssAnon:")[2].split()[0]) / 1024


def test_a_batch_that_failed_half_way_leaves_nothing(ops: NativeOps) -> None:
    batch, table = ops.upload(batch_of([5])), ops.table(normal(100, 8))
    ops.embed([(table, batch.input_ids)])
    ops.upload(batch)
    assert len(ops._stream.program) == 1 and len(ops._stream.kept) == 1


def test_a_tensor_of_another_stream_is_refused(ops: NativeOps) -> None:
    x = ops.linear(ops.vector(normal(3, 4)), ops.matrix(normal(4, 4)))
    with pytest.raises(AssertionError, match="another stream"):
        ops.fork().l2_normalize(x)


def test_no_memory_is_an_error_of_that_batch_only(ops: NativeOps) -> None:
    x = normal(3, 4)
    y = ops._new(3, 4)
    ops._record(COPY_COLUMNS(y.reference, 1 << 55, 0, 0, 0, 0, 0))
    with pytest.raises(MemoryError, match="lower max_context_batch_size"):
        ops.to_numpy(y)
    np.testing.assert_array_equal(ops.to_numpy(ops.concat([ops.vector(x)])), x)


@pytest.mark.parametrize(
    "command",
    [
        '_command(10, "4q")(0, 0, 0, 0, 0, 0)',
        '_command(10, "2q")(0, 0, 0, 0)',
        "NORMALIZE(0, 0, 0, 0, 0)[:-8]",
        "NORMALIZE(0, 0, 0, 0, 0)[:16]",
    ],
)
def test_a_command_of_other_operands_ends_the_process(instruction_set: str, command: str) -> None:
    """A slip between the two sides would have kernels write anywhere."""
    code = f"""
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.native_stream import NORMALIZE, _command
stream = NativeOps(instruction_set={instruction_set!r}).stream
stream.program.append({command})
stream.run(1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode < 0 and "other operands than these kernels read" in done.stderr


def test_results_are_the_callers_own(ops: NativeOps) -> None:
    x = normal(3, 4)
    tensor = ops.vector(x)
    ops.to_numpy(tensor)[:] = 0
    np.testing.assert_array_equal(ops.to_numpy(tensor), x)


def test_host_arrays_may_be_dropped_before_the_run(ops: NativeOps) -> None:
    x = normal(300, 300)
    y = ops.linear(ops.vector(x.copy()), ops.matrix(np.eye(300, dtype=np.float32)))
    noise = [np.full((300, 300), np.nan, np.float32) for _ in range(8)]
    np.testing.assert_array_equal(ops.to_numpy(y), x)
    assert len(noise) == 8
