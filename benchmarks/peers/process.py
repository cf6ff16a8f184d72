"""Each engine in a process of its own, on the same cores, timed inside that process."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.child import end
from benchmarks.peers import ENGINES, Embed, FloatArray, Setup
from benchmarks.report import busy_seconds, cpu_seconds

# A peer was seen to wait for its own threads for ever. Seconds: without an answer (a pass over bge-large's full texts
# takes ten minutes by calculation where there are no tiles), and without any work.
_PATIENCE, _IDLE = 1800.0, 60.0
_LOOK_AGAIN = 1.0


class EngineFailed(RuntimeError):
    """The engine's process could not load it, died, or does not answer; the message says what it said."""


class EngineProcess:
    """A loaded engine behind a pipe; commands wait for their answer, so that one engine works at a time."""

    def __init__(self, name: str, setup: Setup, texts: Mapping[str, Sequence[str]]) -> None:
        """Starts the process; `texts` are named lists that later commands refer to. Raises EngineFailed."""
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, child = context.Pipe()
        arguments = (child, name, setup, {key: list(values) for key, values in texts.items()})
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        child.close()
        self._receive()

    def vectors(self, key: str) -> FloatArray:
        """The vectors of a named list; an untimed pass."""
        vectors: FloatArray = self._ask("vectors", key)
        return vectors

    def cpu_seconds(self, key: str) -> tuple[float, float]:
        """Wall and CPU seconds (all threads) for one named list."""
        wall, cpu = self._ask("cpu_seconds", key)
        return float(wall), float(cpu)

    def latencies(self, key: str, repeats: int) -> list[float]:
        """Wall seconds of the list's first text alone, `repeats` times over."""
        return list(self._ask("latencies", key, repeats))

    def resident_bytes(self) -> int:
        """VmRSS of the engine's process."""
        return int(self._ask("resident_bytes"))

    def close(self) -> None:
        """Ends the process."""
        end(self._process, self._pipe)

    def _ask(self, command: str, *arguments: object) -> Any:
        self._pipe.send((command, *arguments))
        return self._receive()

    def _receive(self) -> Any:
        pid, cpu = self._process.pid, 0.0
        assert pid is not None, "started"
        asked = worked = time.monotonic()
        while not self._pipe.poll(_LOOK_AGAIN):
            now, before, cpu = time.monotonic(), cpu, cpu_seconds(pid)
            worked = now if cpu > before else worked
            if now - asked > _PATIENCE or now - worked > _IDLE:
                self._process.kill()
                raise EngineFailed(
                    f"no answer after {now - asked:.0f} s, of which the last {now - worked:.0f} without work"
                )
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            self._process.join(10)
            raise EngineFailed(f"its process ended with status {self._process.exitcode}") from None
        if failed:
            raise EngineFailed(answer)
        return answer


@dataclass
class Others:
    """CPU seconds that processes outside the benchmark had of the timed seconds; above a few percent, run it again."""

    used: float = 0.0
    timed: float = 0.0

    @property
    def cores(self) -> float:
        return max(0.0, self.used / self.timed) if self.timed else 0.0

    def time(self, process: EngineProcess, key: str) -> tuple[float, float]:
        """`process.cpu_seconds(key)`, while the rest of the machine is watched."""
        busy = busy_seconds()
        wall, cpu = process.cpu_seconds(key)
        self.used += busy_seconds() - busy - cpu
        self.timed += wall
        return wall, cpu


def prepare(name: str, setup: Setup) -> None:
    """Convert the checkpoint for the engine, in a process that ends afterwards. Raises EngineFailed."""
    process = multiprocessing.get_context("spawn").Process(target=_prepare, args=(name, setup), daemon=True)
    process.start()
    process.join()
    if process.exitcode:
        raise EngineFailed(f"converting the checkpoint ended with status {process.exitcode}; its message is above")


def _prepare(name: str, setup: Setup) -> None:
    ENGINES[name].prepare(setup)


def pin(num_threads: int) -> list[int]:
    """Keeps this process and its children to `num_threads` cores (0: all it has); returns the cores' ids.

    Libraries in the children are told to use as many threads, and to be quiet.
    """
    cores = sorted(os.sched_getaffinity(0))[: num_threads or None]
    os.sched_setaffinity(0, cores)
    for variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(len(cores))
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")
    return cores


def _serve(pipe: Connection, name: str, setup: Setup, texts: dict[str, list[str]]) -> None:
    try:
        embed = ENGINES[name].load(setup)
    except Exception as error:  # the border: whatever a peer raises becomes a line of the table
        traceback.print_exc()
        pipe.send((True, f"{type(error).__name__}: {error}"))
        return
    pipe.send((False, None))
    while True:
        try:
            command, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((False, _COMMANDS[command](embed, texts, *arguments)))
        except Exception as error:  # the same border
            traceback.print_exc()
            pipe.send((True, f"{type(error).__name__}: {error}"))


def _vectors(embed: Embed, texts: dict[str, list[str]], key: str) -> FloatArray:
    return embed(texts[key])


def _cpu_seconds(embed: Embed, texts: dict[str, list[str]], key: str) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    embed(texts[key])
    return time.perf_counter() - wall, time.process_time() - cpu


def latencies(embed: Embed, texts: dict[str, list[str]], key: str, repeats: int) -> list[float]:
    one = texts[key][:1]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        embed(one)
        seconds.append(time.perf_counter() - start)
    return seconds


def _resident_bytes(embed: Embed, texts: dict[str, list[str]]) -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_COMMANDS: dict[str, Callable[..., object]] = {
    "vectors": _vectors,
    "cpu_seconds": _cpu_seconds,
    "latencies": latencies,
    "resident_bytes": _resident_bytes,
}
