"""The torch runtime with the fused kernels, in Triton's interpreter: staged tiles, graphs, prefixes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.ops.interpreter  # noqa: F401  # it patches Triton's interpreter
from tests.models.nomic_moe import save as save_experts
from tests.models.test_bert import save_bert
from tests.models.test_deberta import save as save_deberta
from tests.models.test_qwen import save as save_qwen

torch = pytest.importorskip("torch")
from rtp_llm.ops.triton_ops import TritonOps  # noqa: E402
from tests.runtime.test_torch import assert_same, make, reference, some_items  # noqa: E402


@pytest.fixture(scope="module", params=["bert", "deberta", pytest.param("qwen", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "bert":
        save_bert(path, hidden_size=64, num_attention_heads=4, intermediate_size=96)
    elif request.param == "deberta":
        save_deberta(path, "v3")
    else:
        save_qwen(path, "Qwen3", head_dim=16)
    return path


def mode_of(folder: Path) -> str:
    return "lasttoken" if folder.name.startswith("qwen") else "mean"


def test_graphs_of_the_kernels_change_no_row(folder: Path) -> None:
    runtime, _ = make(folder, mode_of(folder), TritonOps("cpu", "fp32"), graph_bytes=1 << 30)
    random = np.random.default_rng(0)
    for _ in range(4):
        items = some_items(tuple(random.integers(1, 10, 2)))
        assert_same(runtime.run(items, 1), reference(folder, mode_of(folder), items))
    assert runtime.counts["graphs"] > 0 and runtime.counts["graph_replays"] > 1


def test_graphs_of_tokens_that_are_not_seen(folder: Path) -> None:
    runtime, _ = make(folder, mode_of(folder), TritonOps("cpu", "fp32"), graph_bytes=1 << 30)
    for unseen in (3, 1, 8, 5):
        items = some_items((4, 9))
        items[1].num_unseen = unseen
        assert_same(runtime.run(items, 1), reference(folder, mode_of(folder), items))
    assert runtime.counts["graphs"] == 1 and runtime.counts["graph_replays"] == 2


def test_vectors_of_distances_without_their_kernel_have_no_graphs(tmp_path: Path) -> None:
    save_deberta(tmp_path, "v3")
    ops = TritonOps("cpu", "fp32", replaced=frozenset({"relative"}))
    assert ops.graph_safe and ops.reads_host - TritonOps("cpu", "fp32").reads_host == {"relative"}
    runtime, _ = make(tmp_path, "mean", ops, graph_bytes=1 << 30)
    for _ in range(4):
        items = some_items((4, 9))
        assert_same(runtime.run(items, 1), reference(tmp_path, "mean", items))
    assert runtime.counts["graphs"] == 0


def test_graphs_of_experts(tmp_path: Path) -> None:
    """How many rows each has is another number in every batch."""
    save_experts(tmp_path, n_layer=2)
    runtime, _ = make(tmp_path, "mean", TritonOps("cpu", "fp32"), graph_bytes=1 << 30)
    random = np.random.default_rng(0)
    for _ in range(4):
        items = some_items(tuple(random.integers(1, 10, 2)))
        assert_same(runtime.run(items, 1), reference(tmp_path, "mean", items))
    assert runtime.counts["graphs"] == 1 and runtime.counts["graph_replays"] == 2


def test_kept_prefixes(folder: Path) -> None:
    runtime, _ = make(folder, mode_of(folder), TritonOps("cpu", "fp32"), prefix_cache_bytes=1 << 20)
    items = some_items((5, 1, 9), prefix=20)
    for _ in range(2):
        assert_same(runtime.run(items, 1), reference(folder, mode_of(folder), items))
