"""A process that may start no more threads, as in a container with few: it computes on those that it has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Stands before the library's own, as a process's limit of threads would.
_REFUSING = """
#include <errno.h>
int pthread_create(void) { return EAGAIN; }
"""
_PROGRAM = """
import numpy as np
from rtp_llm.ops.native_ops import NativeOps
ops, x = NativeOps(2, "generic"), np.random.default_rng(0).standard_normal((512, 256), np.float32)
y = ops.to_numpy(ops.linear(ops.vector(x), ops.matrix(x)))
np.testing.assert_allclose(y, x @ x.T, atol=1e-3)
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
def test_what_there_is_computes(tmp_path: Path) -> None:
    (tmp_path / "refusing.c").write_text(_REFUSING)
    library = tmp_path / "refusing.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "refusing.c"], check=True)
    # numpy's BLAS has threads of its own, which would complain.
    environment = os.environ | {"LD_PRELOAD": str(library), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
