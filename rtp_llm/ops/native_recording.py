"""A program that is kept: it computes every batch of one layout, without a call from Python for each op."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rtp_llm.core import Batch, FloatArray, Int32Array
from rtp_llm.ops.native_checks import check_ids
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.native_stream import Program, Tensor

# What each batch of a layout brings.
_OF_BATCH = ("input_ids", "position_ids", "token_type_ids", "prompt_lens")

# Larger results are copied for longer than their ops take to ask for, and would be kept for each layout.
_MOST_BYTES = 1 << 16

# Takes a batch of arrays that will be filled anew -> the rows that are wanted of it, by ops alone.
Compute = Callable[[Batch], Tensor]


class Recording:
    """What one stream's `ops` were asked for; the host arrays that its program reads and writes are its own."""

    def __init__(self, program: Program, inputs: Sequence[Int32Array], output: FloatArray) -> None:
        self._program = program
        self._inputs = inputs
        self._output = output

    def run(self, ops: NativeOps, batch: Batch) -> FloatArray:
        """The rows of a batch of the same layout, with the bits that the ops would give them.

        InvalidRequest for an id without a row.
        """
        for array, name in zip(self._inputs, _OF_BATCH, strict=True):
            np.copyto(array, getattr(batch, name))
        for ids, num_rows in self._program.bounds:
            check_ids(ids, num_rows)
        ops.stream.run_words(self._program.words, ops.num_threads)
        return self._output.copy()


def record(ops: NativeOps, batch: Batch, compute: Compute) -> tuple[FloatArray, Recording | None]:
    """The rows of a batch, and how to compute others of its layout; None where the program does not say all of that.

    Some op went through Python, or none reads the ids: what Python made of them is a constant of the program then.
    """
    own = replace(batch, **{name: getattr(batch, name).copy() for name in _OF_BATCH})
    with ops.stream.watched() as programs:
        output = ops.to_numpy(compute(own))
    if len(programs) != 1 or not programs[0].is_whole(output) or output.nbytes > _MOST_BYTES:
        return output, None
    if all(ids is not own.input_ids for ids, _ in programs[0].bounds):
        return output, None
    return output.copy(), Recording(programs[0], [getattr(own, name) for name in _OF_BATCH], output)
