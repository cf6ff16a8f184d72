"""TorchOps' pooling over long sequences, whose sums take many steps."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import batch_of, normal

pytest.importorskip("torch")

MODES = ["mean", "mean_sqrt_len_tokens", "weightedmean", "max", "cls", "lasttoken"]


@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_sums_are_as_exact_as_the_definition(mode: Any, skip_prompt: bool) -> None:
    from rtp_llm.ops.torch_ops import TorchOps

    ops = TorchOps()
    batch, x = batch_of([4000, 1, 513], [3, 1, 0]), normal(4514, 24) + np.float32(3)
    ours = ops.to_numpy(ops.pool(ops.vector(x), ops.upload(batch), mode, skip_prompt=skip_prompt))
    np.testing.assert_allclose(ours, NumpyOps().pool(x, batch, mode, skip_prompt=skip_prompt), rtol=2e-7)
