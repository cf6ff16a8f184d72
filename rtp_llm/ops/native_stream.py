"""What is recorded for the kernels: a program of 64-bit words, and the tensors that it will compute.

A command is an opcode with the number of its operands, its result, how many floats to allocate for that (0: it is
there), and the operands; `native/program.h` reads it, and checks that it has read as many. A tensor is written as the
address of host memory, or as `2 * slot + 1`: the memory of a slot is found when the program runs, so that recording an
op calls no C function. A slot whose tensor was dropped serves commands recorded later, and so does its memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from rtp_llm.core import FloatArray, Int32Array
from rtp_llm.ops.native_library import Library

_MAX_OPCODES = 256


def _command(opcode: int, operands: str) -> Callable[..., bytes]:
    """The packer of (result, floats to allocate, *operands); q: an integer, an address or a tensor, d: a real."""
    command = Struct("3q" + operands)
    num_operands = command.size // 8 - 3
    return partial(command.pack, opcode + _MAX_OPCODES * num_operands)


RESET = _command(0, "")
FREE = _command(1, "")
LINEAR = _command(2, "10q")  # x, weight, bias, residual, rows, N, K, activation, weight is bf16, parts
NORM = _command(3, "6qdq")  # x, residual, rows, size, weight, bias, eps, centered
# rows, size, lookups, bf16 tables, scale, tables, ids, weight, bias, eps, centered
EMBED = _command(4, "4qd4q4q2qdq")
# qkv, cu_seqlens, prefix_of, seen_lens, wanted, num_wanted, kept, their lengths, num_seqs, max_seqlen, heads, kv_heads,
# head_dim, causal, window, scale, softcap, distance_bias, its reach, relative keys, relative queries, their reach,
# parts
ATTENTION = _command(5, "15q2d6q")
ROTARY = _command(6, "5q2qdq2qdq")  # cos_sin, rows, heads, kv_heads, head_dim, norm of queries, norm of keys
GATED = _command(7, "4q")  # x, rows, size, activation
POOL = _command(8, "6q")  # x, cu_seqlens, prompt_lens, num_seqs, size, mode
COPY_COLUMNS = _command(9, "5q")  # first column, x, rows, size, stride
NORMALIZE = _command(10, "3q")  # x, rows, size
TAKE_ROWS = _command(11, "4q")  # x, index, rows, size
QUANTIZE = _command(12, "3q")  # x, rows, K
LINEAR_INT8 = _command(13, "8q")  # quantised x, weight, bias, residual, rows, N, K, activation

LINEAR_GROUPED = _command(14, "10q")  # bits, x, weight, bias, residual, rows, N, K, activation, parts
# A routing is its tensor, with rows, experts and experts a row; the result of the first two is one.
ROUTE = _command(15, "6q")  # rows, experts, top, x, router, size
GROUP_ROWS = _command(16, "3q")  # rows, experts, top
GATHER = _command(17, "6q")  # x, size, routing
EXPERT_PRODUCTS = _command(18, "11q")  # kind of weight, parts, x, weights, N, K, activation, routing
MIX_EXPERTS = _command(19, "8q")  # parts, bias, residual, size, routing
ACTIVATE = _command(20, "4q")  # x, rows, size, activation

# The activations that a product's kernel computes on its way out, as it counts them.
FUSED: dict[str | None, int] = {None: 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "silu": 4, "tanh": 5}
GATES = 8  # added to one: it makes gates of the first half of the columns, and the result is half as wide


class Program(NamedTuple):
    """What was run, with all that must live for it to run again.

    bounds  arrays of ids that it reads, and below what they must be
    """

    words: bytes
    kept: tuple[Any, ...]
    bounds: tuple[tuple[Int32Array, int], ...]

    def is_whole(self, output: FloatArray) -> bool:
        """Whether it goes from the start of a batch to `output`, so that it can run again."""
        return self.words.startswith(RESET(0, 0)) and any(array is output for array in self.kept)


class Stream:
    """Owns the C++ stream: the program so far, and the host arrays that it will read or write.

    programs  what has been run while somebody asks for it; None: nobody does
    """

    __slots__ = ("bounds", "free", "handle", "kept", "library", "num_slots", "program", "programs")

    def __init__(self, library: Library) -> None:
        self.library = library
        self.program: list[bytes] = []
        self.kept: list[Any] = []
        self.bounds: list[tuple[Int32Array, int]] = []
        self.programs: list[Program] | None = None
        self.free: list[int] = []
        self.num_slots = 0
        self.handle: int | None = library.stream_new()
        if not self.handle:
            raise MemoryError("no memory for a stream")

    def __del__(self) -> None:
        handle, self.handle = self.handle, None
        if handle:
            self.library.stream_delete(handle)

    @property
    def is_idle(self) -> bool:
        """Nobody holds a tensor of it."""
        return len(self.free) == self.num_slots

    def begin(self) -> None:
        """Start of a batch: what nobody holds any more is dropped, as after an exception half-way through a model."""
        if self.is_idle:
            self.program = [RESET(0, 0)]
            self.kept.clear()
            self.bounds.clear()

    def new(self, num_rows: int, size: int) -> "Tensor":
        """What a command will compute; of no rows, there already."""
        if num_rows == 0:
            return hosted(np.empty((0, size), np.float32))
        return Tensor((num_rows, size), self._slot(), self)

    def _slot(self) -> int:
        """The reference of a new tensor's memory."""
        if self.free:
            return self.free.pop()
        self.num_slots += 1
        return 2 * self.num_slots - 1

    def record(self, command: bytes) -> None:
        """To be run after all that was recorded before."""
        self.program.append(command)

    def operand(self, x: "Tensor | None") -> int:
        """What a command says for x. Host memory is kept until the run; the stream's own lives on in stream order."""
        if x is None:
            return 0
        if x.stream is not self:
            assert x.host is not None, "a tensor of another stream"
            self.kept.append(x)
        return x.reference

    def quantized(self, x: "Tensor") -> "Tensor":
        """Rows in 8 bits, for a product with an int8 weight."""
        num_rows, size = x.shape
        y = self.new(num_rows, self.library.quantized_row_bytes(size) // 4)
        self.record(QUANTIZE(y.reference, y.shape[0] * y.shape[1], self.operand(x), num_rows, size))
        return y

    def run(self, num_threads: int) -> None:
        """Everything recorded so far; MemoryError, and it is lost, where an activation has no room."""
        # NOTE: the list is taken first: the collector may drop a tensor of this stream on another thread meanwhile.
        program, self.program = self.program, []
        words = b"".join(program)
        if self.programs is not None:
            self.programs.append(Program(words, tuple(self.kept), tuple(self.bounds)))
        self.run_words(words, num_threads)

    @contextmanager
    def watched(self) -> Iterator[list[Program]]:
        """What is run meanwhile."""
        self.programs = programs = list[Program]()
        try:
            yield programs
        finally:
            self.programs = None

    def run_words(self, words: bytes, num_threads: int) -> None:
        """A whole program, from a batch's start to its result; what was kept for it no longer is."""
        done = self.library.run(self.handle, words, len(words) // 8, num_threads)
        self.kept.clear()
        self.bounds.clear()
        if not done:
            raise MemoryError("no memory for the activations of a batch; lower max_context_batch_size")


class Tensor:
    """fp32, row-major: memory of a stream, or a host array where `host` is set; programs say `reference`.

    parts  how many bf16 parts of each factor the product took that it comes from; attention takes as many
    """

    __slots__ = ("host", "parts", "reference", "shape", "stream")

    def __init__(
        self, shape: tuple[int, ...], reference: int, stream: Stream | None, host: FloatArray | None = None
    ) -> None:
        self.shape, self.reference, self.stream, self.host = shape, reference, stream, host
        self.parts = 3

    def __del__(self) -> None:
        stream = self.stream
        if stream is not None:
            stream.program.append(FREE(self.reference, 0))
            stream.free.append(self.reference)


def hosted(values: FloatArray) -> Tensor:
    """A tensor of a host array."""
    host = np.ascontiguousarray(values, dtype=np.float32)
    return Tensor(host.shape, host.ctypes.data, None, host)
