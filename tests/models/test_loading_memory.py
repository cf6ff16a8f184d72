"""Loading holds a checkpoint once: bf16 stays bf16, and pages of the file are let go on the way."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import BACKENDS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LOAD = """
import sys
from pathlib import Path
from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.models import load_model
from rtp_llm.ops.native_ops import NativeOps

def megabytes(key):
    return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) / 1024

ops, folder = NativeOps(), Path(sys.argv[1])
hf, source, before = read_json(folder, "config.json"), open_tensors(folder), megabytes("VmRSS:")
model = load_model("qwen3", hf, source, ops)
print(megabytes("VmHWM:") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_is_under_1_3_times_the_checkpoint(dtype: str, tmp_path: Path) -> None:
    BACKENDS["native"]()
    config = transformers.Qwen3Config(
        vocab_size=15000, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
        head_dim=64, intermediate_size=2048, max_position_embeddings=1024,
    )  # fmt: skip
    transformers.Qwen3Model(config).to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="30MB")
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) / 2**20
    run = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(run.stdout) <= 1.3 * size, f"{run.stdout.strip()} MB for {size:.0f} MB"
