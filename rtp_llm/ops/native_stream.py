"""What is recorded for the kernels: a program of 64-bit words, and the tensors that it will compute.

A command is an opcode, its result, how many floats to allocate for that (0: it is there), and its operands;
`native/program.h` reads it. A tensor is written as the address of host memory, or as `2 * slot + 1`: the memory of a
slot is found when the program runs, so that recording an op calls no C function. A slot whose tensor was dropped serves
commands recorded later, and so does its memory.
"""

from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any

import numpy as np

from rtp_llm.core import FloatArray
from rtp_llm.ops.native_library import Library


def _command(opcode: int, operands: str) -> Callable[..., bytes]:
    """The packer of (result, floats to allocate, *operands); q: an integer, an address or a tensor, d: a real."""
    return partial(Struct("3q" + operands).pack, opcode)


RESET = _command(0, "")
FREE = _command(1, "")
LINEAR = _command(2, "9q")  # x, weight, bias, residual, rows, N, K, activation, weight is bf16
NORM = _command(3, "5qdq")  # x, rows, size, weight, bias, eps, centered
EMBED = _command(4, "4q4q4q2qdq")  # rows, size, lookups, bf16 tables, tables, ids, weight, bias, eps, centered
# qkv, cu_seqlens, prefix_of, wanted, num_wanted, kept, their lengths, num_seqs, max_seqlen, heads, kv_heads, head_dim,
# scale, causal, window, distance_bias, its reach
ATTENTION = _command(5, "12qd4q")
ROTARY = _command(6, "5q2qdq2qdq")  # cos_sin, rows, heads, kv_heads, head_dim, norm of queries, norm of keys
GATED = _command(7, "4q")  # x, rows, size, activation
POOL = _command(8, "6q")  # x, cu_seqlens, prompt_lens, num_seqs, size, mode
COPY_COLUMNS = _command(9, "5q")  # first column, x, rows, size, stride
NORMALIZE = _command(10, "3q")  # x, rows, size
TAKE_ROWS = _command(11, "4q")  # x, index, rows, size
QUANTIZE = _command(12, "3q")  # x, rows, K
LINEAR_INT8 = _command(13, "8q")  # quantised x, weight, bias, residual, rows, N, K, activation

LINEAR_GROUPED = _command(14, "9q")  # bits, x, weight, bias, residual, rows, N, K, activation


class Stream:
    """Owns the C++ stream: the program so far, and the host arrays that it will read or write."""

    __slots__ = ("free", "handle", "kept", "library", "num_slots", "program")

    def __init__(self, library: Library) -> None:
        self.library = library
        self.program: list[bytes] = []
        self.kept: list[Any] = []
        self.free: list[int] = []
        self.num_slots = 0
        self.handle: int | None = library.stream_new()
        if not self.handle:
            raise MemoryError("no memory for a stream")

    def __del__(self) -> None:
        handle, self.handle = self.handle, None
        if handle:
            self.library.stream_delete(handle)

    def begin(self) -> None:
        """Start of a batch: what nobody holds any more is dropped, as after an exception half-way through a model."""
        if len(self.free) == self.num_slots:
            self.program = [RESET(0, 0)]
            self.kept.clear()

    def slot(self) -> int:
        """The reference of a new tensor's memory."""
        if self.free:
            return self.free.pop()
        self.num_slots += 1
        return 2 * self.num_slots - 1

    def run(self, num_threads: int) -> None:
        """Everything recorded so far; MemoryError, and it is lost, where an activation has no room."""
        # NOTE: the list is taken first: the collector may drop a tensor of this stream on another thread meanwhile.
        program, self.program = self.program, []
        words = b"".join(program)
        done = self.library.run(self.handle, words, len(words) // 8, num_threads)
        self.kept.clear()
        if not done:
            raise MemoryError("no memory for the activations of a batch; lower max_context_batch_size")


class Tensor:
    """fp32, row-major: memory of a stream, or a host array where `host` is set; programs say `reference`."""

    __slots__ = ("host", "reference", "shape", "stream")

    def __init__(
        self, shape: tuple[int, ...], reference: int, stream: Stream | None, host: FloatArray | None = None
    ) -> None:
        self.shape, self.reference, self.stream, self.host = shape, reference, stream, host

    def __del__(self) -> None:
        stream = self.stream
        if stream is not None:
            stream.program.append(FREE(self.reference, 0))
            stream.free.append(self.reference)


def hosted(values: FloatArray) -> Tensor:
    """A tensor of a host array."""
    host = np.ascontiguousarray(values, dtype=np.float32)
    return Tensor(host.shape, host.ctypes.data, None, host)
