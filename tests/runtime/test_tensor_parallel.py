"""Tensor parallel on the CPU: two gloo processes against one, sharded reads, and a rank that ends."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType
from rtp_llm.errors import ConfigError, DeviceLost
from rtp_llm.model_config import read_model_config
from rtp_llm.runtime import load_runtime, rank_weights
from rtp_llm.runtime.rank_weights import RankSource
from rtp_llm.tasks.dense import Dense, PoolingModes
from rtp_llm.tasks.token_vectors import Tokens
from tests.models.test_gemma import KINDS
from tests.models.test_gemma import save as save_gemma
from tests.models.test_qwen import save as save_qwen
from tests.real_server import free_port, launch, wait_until_ready
from tests.runtime.test_torch import assert_same, some_items

pytest.importorskip("torch")
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen3": {"attention_bias": True, "num_key_value_heads": 4},
    "window": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "Llama": {"attention_bias": True, "mlp_bias": True},
    "Gemma3": {"layer_types": KINDS},
}


def config(folder: Path, **options: Any) -> EngineConfig:
    return EngineConfig(checkpoint_path=str(folder), backend="torch", device="cpu", **options)


def load(folder: Path, **options: Any) -> Any:
    settings = config(folder, **options)
    runtime: Any = load_runtime(settings, read_model_config(folder, settings))
    for replica in runtime.replicas:
        replica.tasks = {TaskType.DENSE: Dense(PoolingModes(("lasttoken",)), [], 64), TaskType.TOKENS: Tokens(64)}
    runtime.start(128)
    return runtime


# Each starts two processes, which import torch: the others when there is time.
@pytest.fixture(params=["Qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in SHAPES if name != "Qwen3")])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "Gemma3":
        save_gemma(tmp_path, **SHAPES["Gemma3"])
        return tmp_path
    save_qwen(tmp_path, request.param if request.param != "window" else "Qwen2", **SHAPES[request.param])
    return tmp_path


@pytest.fixture
def two(folder: Path) -> Iterator[Any]:
    runtime = load(folder, tp_size=2)
    yield runtime
    runtime.close()


def test_two_ranks_are_one_model(two: Any, folder: Path) -> None:
    one = load(folder)
    for tasks in ((TaskType.DENSE,), (TaskType.DENSE, TaskType.TOKENS)):
        for prefix in (0, 20):
            items = some_items(tasks=tasks, prefix=prefix)
            assert_same(two.run(items, 1), one.run(items, 1))
    assert two.model.layers[0].out.weight.shape[1] * 2 == one.model.layers[0].out.shape[1]


@pytest.mark.parametrize("folder", ["Qwen2"], indirect=True)
def test_a_rank_that_ends_is_the_end(two: Any) -> None:
    told: list[DeviceLost] = []
    seen = threading.Event()

    def on_lost(lost: DeviceLost) -> None:
        told.append(lost)
        seen.set()

    two.watch(on_lost)
    (process,) = two._leader._ranks._processes
    os.kill(process.pid, signal.SIGKILL)
    assert seen.wait(20) and "rank 1 has ended with status -9" in str(told[0])
    with pytest.raises(DeviceLost):
        two.run(some_items(), 1)


@pytest.mark.parametrize("folder", ["Qwen2"], indirect=True)
def test_what_cannot_be_cut(folder: Path) -> None:
    with pytest.raises(ConfigError, match="tp_size 3 does not divide the checkpoint's num_attention_heads, 4"):
        load(folder, tp_size=3)
    with pytest.raises(ConfigError, match="tp_size 4 does not divide the checkpoint's num_key_value_heads, 2"):
        load(folder, tp_size=4)
    with pytest.raises(ConfigError, match="choose one of them"):
        load(folder, tp_size=2, dp_size=2)
    with pytest.raises(ConfigError, match="bert is not cut"):
        rank_weights.check("bert", {}, 2)


@pytest.mark.parametrize(
    ("model_type", "heads"),
    [("llama", (8, 8, 12)), ("mistral", (8, 4, 12)), ("qwen3", (8, 8, 128)), ("gemma3_text", (8, 2, 256))],
)
def test_what_config_json_leaves_out_is_the_models_own(model_type: str, heads: tuple[int, int, int]) -> None:
    hf = {
        "hidden_size": 192, "num_attention_heads": 16, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 9
    }  # fmt: skip
    rank_weights.check(model_type, hf, 2)
    cut = rank_weights.config_of_rank(model_type, hf, 2)
    assert tuple(cut[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")) == heads
    assert cut["intermediate_size"] == 32 and cut["hidden_size"] == 192


@pytest.mark.parametrize("folder", ["Qwen3"], indirect=True)
def test_ranks_read_their_parts(folder: Path) -> None:
    whole = open_tensors(folder)
    parts = [RankSource(whole, rank, 2) for rank in range(2)]
    for name in whole.tensors:
        full, cut = whole.read(name), [part.read(name) for part in parts]
        assert all(part.tensors[name].shape == array.shape for part, array in zip(parts, cut, strict=True))
        if name.endswith(("norm.weight", "embed_tokens.weight", "o_proj.bias")):
            assert all(np.array_equal(array, full) for array in cut)
        else:
            axis = 1 if "o_proj.weight" in name or "down_proj" in name else 0
            assert np.array_equal(np.concatenate(cut, axis), full), name
    assert read_json(folder, "config.json")["num_attention_heads"] == 4


@pytest.mark.parametrize("folder", ["Qwen2"], indirect=True)
def test_two_copies_behind_one_queue(folder: Path) -> None:
    runtime, items = load(folder, dp_size=2), some_items()
    assert (runtime.num_devices, runtime.num_cores, len(runtime.replicas)) == (2, 2, 2)
    assert_same(runtime.run(items, 1), load(folder).run(items, 1))


@pytest.mark.slow
def test_a_server_without_one_of_its_ranks_ends(minilm: Path, tmp_path: Path) -> None:
    folder, log, port = tmp_path / "model", tmp_path / "log", free_port()
    save_qwen(folder, "Qwen2", vocab_size=30522)
    shutil.copy(minilm / "tokenizer.json", folder)
    options = ["--backend", "torch", "--device", "cpu", "--tp_size", "2", "--start_port", str(port)]
    process = launch([str(folder), *options], log)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json={"input": ["a", "b c"]})
        assert len(answer.json()["data"]) == 2
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (rank,) = [child for child in children if "follower" in Path(f"/proc/{child}/cmdline").read_text()]
        os.kill(int(rank), signal.SIGKILL)
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()
    last = log.read_text().strip().splitlines()[-1]
    assert "tensor parallel: rank 1 has ended with status -9: the server has ended" in last
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_ranks_do_not_outlive_a_server_that_is_killed(minilm: Path, tmp_path: Path) -> None:
    folder, log, port = tmp_path / "model", tmp_path / "log", free_port()
    save_qwen(folder, "Qwen2", vocab_size=30522)
    shutil.copy(minilm / "tokenizer.json", folder)
    options = ["--backend", "torch", "--device", "cpu", "--tp_size", "2", "--start_port", str(port)]
    process = launch([str(folder), *options], log)
    wait_until_ready(f"http://127.0.0.1:{port}", process, log)
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.1)
