"""Triton's interpreter, which tests/conftest.py has asked for; who imports this needs torch and triton."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton", reason="triton is not installed: pip install 'rtp-llm[test]'")

from benchmarks.interpreter import mend

mend()
