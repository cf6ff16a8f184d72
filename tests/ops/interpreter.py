"""Triton's interpreter, which tests/conftest.py has asked for; who imports this needs torch and triton.

On a GPU: TRITON_INTERPRET=0 RTP_LLM_TEST_DEVICE=cuda pytest -W default tests/ops/test_triton_ops.py
"""

import os

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton", reason="triton is not installed: pip install 'rtp-llm[test]'")

from benchmarks.interpreter import mend

DEVICE = os.environ.get("RTP_LLM_TEST_DEVICE", "cpu")
# Products of bf16 are wrong in the interpreter.
ON_DEVICE_ALONE = ["bf16"] if DEVICE != "cpu" else []
mend()
