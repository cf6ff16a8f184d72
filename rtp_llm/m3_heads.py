"""BGE-M3's two heads, which stand beside the encoder in files of their own."""

from pathlib import Path

from rtp_llm.checkpoint import find
from rtp_llm.errors import CheckpointError

SPARSE_HEAD, COLBERT_HEAD = "sparse_linear.pt", "colbert_linear.pt"


def has_heads(folder: Path) -> bool:
    """Whether both are there."""
    return find(folder, SPARSE_HEAD) is not None and find(folder, COLBERT_HEAD) is not None


def check_heads(folder: Path) -> None:
    """CheckpointError where one of them is there alone: without it this would be another model."""
    there = [name for name in (SPARSE_HEAD, COLBERT_HEAD) if find(folder, name) is not None]
    if len(there) == 1:
        absent = COLBERT_HEAD if there == [SPARSE_HEAD] else SPARSE_HEAD
        raise CheckpointError(
            f"{folder}: {there[0]} is there, but {absent} is missing; download it, or say with --task_type what to "
            "serve"
        )
