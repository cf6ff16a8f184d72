"""The processes of a tensor-parallel model, as rank 0 sees them: started, awaited, watched, ended."""

import json
import select
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rtp_llm.child_process import command_of
from rtp_llm.errors import ConfigError, DeviceLost

# Importing torch and reading a large checkpoint from a slow disk.
_START_SECONDS = 600
_END_SECONDS = 5


class Ranks:
    """Ranks 1 to size - 1. A rank lives as long as its standard input is open, so none outlives rank 0.

    orders  for each rank, what `rtp_llm.runtime.follower` needs to know
    """

    def __init__(self, orders: list[dict[str, Any]]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rtp_llm_")  # only this user can read it
        self.rendezvous = str(Path(self._folder.name) / "rendezvous")
        self._on_lost: Callable[[DeviceLost], None] | None = None
        self._lost: DeviceLost | None = None
        self._lock = threading.Lock()
        self._closing = False
        command = command_of("rtp_llm.runtime.follower")
        self._processes = []
        for order in orders:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert process.stdin is not None
            process.stdin.write(json.dumps({**order, "rendezvous": self.rendezvous}).encode() + b"\n")
            process.stdin.flush()
            self._processes.append(process)

    def wait_for(self, word: str) -> None:
        """Until each rank has said the word; ConfigError where one ends, or takes too long."""
        for rank, process in enumerate(self._processes, 1):
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
            line = process.stdout.readline().decode().strip() if ready else "nothing"
            if line != word:
                self.close()
                raise ConfigError(f"tp_size: rank {rank} did not start ({line or 'it has ended'}; see its log above)")

    def watch(self) -> None:
        """From now on a rank that ends is the end of the model."""
        for rank, process in enumerate(self._processes, 1):
            threading.Thread(target=self._await_end, args=(rank, process), name=f"rank-{rank}", daemon=True).start()

    @property
    def lost(self) -> bool:
        """One has ended, and not because it was told to."""
        return self._lost is not None

    def on_lost(self, call: Callable[[DeviceLost], None]) -> None:
        """Be told, once, when a rank has ended; at once if it has already."""
        with self._lock:
            self._on_lost, lost = call, self._lost
        if lost is not None:
            call(lost)

    def close(self) -> None:
        """Let them end by themselves, then end them."""
        with self._lock:
            self._closing = True
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        for process in self._processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def _await_end(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        status = process.wait()
        with self._lock:
            if self._closing or self._lost is not None:
                return
            self._lost = DeviceLost(f"tensor parallel: rank {rank} has ended with status {status}")
            call = self._on_lost
        if call is not None:
            call(self._lost)
