"""The torch runtime on a stand-in for a GPU: the rows of the CPU, two batches in flight, memory that ends, graphs."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.core import Item, TaskType
from rtp_llm.errors import DeviceLost, EngineFailure, InvalidRequest
from rtp_llm.model_config import read_model_config
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.runtime import load_runtime
from rtp_llm.runtime.cpu import CpuRuntime
from rtp_llm.runtime.token_budget import TokenBudget
from rtp_llm.tasks.dense import Dense, PoolingModes
from rtp_llm.tasks.token_vectors import Tokens
from tests.models.oracle import load, make_items
from tests.models.test_bert import save_bert
from tests.models.test_qwen import save as save_qwen

torch = pytest.importorskip("torch")
from rtp_llm.ops.torch_ops import TorchOps  # noqa: E402
from rtp_llm.runtime.data_parallel import DataParallelRuntime  # noqa: E402
from rtp_llm.runtime.torch import TorchRuntime  # noqa: E402
from tests.runtime.stand_in import MaskedOps, StandIn  # noqa: E402

LENGTHS = (5, 1, 33, 17, 40, 2)
DENSE, TOKENS = TaskType.DENSE, TaskType.TOKENS
Tasks = tuple[TaskType, ...]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    save_bert(folder / "bert", hidden_size=64, num_attention_heads=4, intermediate_size=96)
    save_qwen(folder / "qwen", "Qwen3")
    return {"bert": folder / "bert", "qwen": folder / "qwen"}


def tasks_for(mode: str) -> dict[TaskType, Any]:
    pooling: Any = PoolingModes((mode,))  # type: ignore[arg-type]
    return {DENSE: Dense(pooling, [], 64), TOKENS: Tokens(64)}


def make(
    folder: Path, mode: str, ops: TorchOps | None = None, device: StandIn | None = None, **options: Any
) -> tuple[TorchRuntime, StandIn]:
    ops, device = ops or TorchOps(), device or StandIn()
    runtime = TorchRuntime(
        model_type="x", model=load(folder, ops), ops=ops, device=device, budget=TokenBudget(), **options
    )
    runtime.tasks = tasks_for(mode)
    return runtime, device


def reference(folder: Path, mode: str, items: Sequence[Item]) -> Any:
    ops = NumpyOps()
    runtime = CpuRuntime(model_type="x", model=load(folder, ops), ops=ops, num_cores=1)
    runtime.tasks = tasks_for(mode)
    return runtime.run(items, 1)


def some_items(lengths: Sequence[int] = LENGTHS, tasks: Tasks = (DENSE,), prefix: int = 0) -> list[Item]:
    items = make_items(tuple(lengths), vocab=80)
    for item in items:
        item.tasks, item.token_type_ids = tasks, None
        if prefix:
            head = np.arange(prefix, dtype=np.int32)
            item.input_ids, item.prefix = np.concatenate([head, item.input_ids]), head.tobytes()
    return items


def assert_same(ours: Any, expected: Any) -> None:
    assert list(ours) == list(expected)
    for task, rows in expected.items():
        assert len(ours[task]) == len(rows)
        for own, row in zip(ours[task], rows, strict=True):
            np.testing.assert_allclose(own, row, atol=2e-5)


@pytest.mark.parametrize("family", ["bert", "qwen"])
@pytest.mark.parametrize("mode", ["cls", "mean", "lasttoken"])
@pytest.mark.parametrize("tasks", [(DENSE,), (DENSE, TOKENS)])
def test_rows_are_the_cpus(folders: dict[str, Path], family: str, mode: str, tasks: Tasks) -> None:
    items = some_items(tasks=tasks)
    runtime, _ = make(folders[family], mode)
    for batch in (items, items[:1], items[::-1]):
        assert_same(runtime.run(batch, 1), reference(folders[family], mode, batch))


def test_a_token_type_outside_the_table_is_refused(folders: dict[str, Path]) -> None:
    """A device would read what stands behind the table, or end."""
    runtime, _ = make(folders["bert"], "mean")
    items = some_items()
    items[2].token_type_ids = np.full(items[2].num_tokens, 2, np.int32)
    with pytest.raises(InvalidRequest, match="id 2 is outside the model's table of 2 rows"):
        runtime.run(items, 1)
    items[2].token_type_ids = None
    assert_same(runtime.run(items, 1), reference(folders["bert"], "mean", items))


@pytest.mark.parametrize("cache", [0, 1 << 20])
def test_shared_prefixes(folders: dict[str, Path], cache: int) -> None:
    items = some_items(prefix=20)
    runtime, _ = make(folders["qwen"], "lasttoken", prefix_cache_bytes=cache)
    expected = reference(folders["qwen"], "lasttoken", items)
    for _ in range(2):
        assert_same(runtime.run(items, 1), expected)
    kept = runtime._prefixes.find(items).kept
    assert len(kept) == bool(cache) and all(isinstance(layer, torch.Tensor) for one in kept for layer in one.layers)


def test_two_batches_in_flight_do_not_meet(folders: dict[str, Path]) -> None:
    runtime, device = make(folders["bert"], "mean")
    batches = [some_items(tuple(np.random.default_rng(i).integers(1, 60, 9))) for i in range(12)]
    both = threading.Barrier(2)
    runtime._launch = both_enter(runtime._launch, both)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda batch: runtime.run(batch, 1), batches))
    assert device.most_in_flight == 2
    for batch, rows in zip(batches, results, strict=True):
        assert_same(rows, reference(folders["bert"], "mean", batch))


def both_enter(lock: Any, both: threading.Barrier) -> Any:
    """A lock that the first two threads take only when both have staged their batches."""

    class Lock:
        waits = 2

        def __enter__(self) -> None:
            if self.waits:
                self.waits -= 1
                both.wait(10)
            lock.acquire()

        def __exit__(self, *_: Any) -> None:
            lock.release()

    return Lock()


def test_out_of_memory_halves_the_step_for_good(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    items = some_items(LENGTHS * 4, tasks=(DENSE,))
    for item in items[::5]:
        item.tasks = (DENSE, TOKENS)
    runtime, device = make(folders["bert"], "mean")
    device.memory = 3 * 220
    assert_same(runtime.run(items, 1), reference(folders["bert"], "mean", items))
    assert runtime.counts["out_of_memory"] >= 1 and device.caches_emptied == runtime.counts["out_of_memory"]
    assert "out of memory" in caplog.text
    failures = runtime.counts["out_of_memory"]
    runtime.run(items, 1)
    assert runtime.counts["out_of_memory"] == failures and runtime.counts["largest_step"] < 392


def test_an_input_that_does_not_fit_is_its_own_error(folders: dict[str, Path]) -> None:
    runtime, device = make(folders["bert"], "mean")
    device.memory = 200
    with pytest.raises(EngineFailure, match="90 tokens needs more memory"):
        runtime.run(some_items((90,)), 1)
    assert len(runtime.run(some_items((9,)), 1)[DENSE]) == 1


def test_a_slot_comes_back_from_an_error(folders: dict[str, Path]) -> None:
    runtime, _ = make(folders["bert"], "mean")
    items = some_items((3, 4))
    items[0].input_ids = np.array([10**6], np.int32)
    for _ in range(3):
        with pytest.raises(IndexError):
            runtime.run(items, 1)
    assert_same(runtime.run(items[1:], 1), reference(folders["bert"], "mean", items[1:]))


def test_a_device_that_has_failed_is_lost(folders: dict[str, Path]) -> None:
    runtime, device = make(folders["bert"], "mean")
    device.failed = True
    items = some_items((3,))
    items[0].input_ids = np.array([10**6], np.int32)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        runtime.run(items, 1)


@pytest.mark.parametrize(("family", "mode"), [("bert", "mean"), ("bert", "cls"), ("qwen", "lasttoken")])
def test_graphs_change_no_row(folders: dict[str, Path], family: str, mode: str) -> None:
    runtime, _ = make(folders[family], mode, MaskedOps(), graph_bytes=1 << 30)
    random = np.random.default_rng(0)
    for _ in range(14):
        items = some_items(tuple(random.integers(1, 40, random.integers(1, 5))))
        assert_same(runtime.run(items, 1), reference(folders[family], mode, items))
    assert 0 < runtime.counts["graphs"] <= 4 and runtime.counts["graph_replays"] > 3


def test_graphs_of_tokens_that_are_not_seen(folders: dict[str, Path]) -> None:
    """One graph for batches without them, another for those with some, however many."""
    runtime, _ = make(folders["bert"], "mean", MaskedOps(), graph_bytes=1 << 30)
    for unseen in ((0, 0), (3, 0), (0, 2), (6, 8)) * 4:
        items = some_items((7, 9))
        items[0].num_unseen, items[1].num_unseen = unseen
        assert_same(runtime.run(items, 1), reference(folders["bert"], "mean", items))
    assert runtime.counts["graphs"] == 2 and runtime.counts["graph_replays"] > 8


def test_a_graph_that_cannot_be_captured(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    runtime, device = make(folders["bert"], "mean", MaskedOps(), graph_bytes=1 << 30)
    device.captures = False
    items = some_items((7, 9))
    for _ in range(5):
        assert_same(runtime.run(items, 1), reference(folders["bert"], "mean", items))
    assert caplog.text.count("no CUDA graphs") == 1 and runtime.counts["graphs"] == 0
    assert "not permitted" in caplog.text, "what went wrong first"


def test_graphs_that_gain_nothing_are_not_used(folders: dict[str, Path]) -> None:
    """Nor larger ones: nothing is filled up for them, and smaller batches may have theirs."""
    runtime, device = make(folders["bert"], "mean", MaskedOps(), graph_bytes=1 << 30)
    device.gain = 1.0
    large, small = some_items((40, 50)), some_items((7, 9))
    for _ in range(4):
        assert_same(runtime.run(large, 1), reference(folders["bert"], "mean", large))
    assert runtime.counts["graphs"] == 0 and runtime._graphs.fill(large) is None
    device.gain = 2.0
    for _ in range(4):
        assert_same(runtime.run(small, 1), reference(folders["bert"], "mean", small))
    assert runtime.counts["graphs"] == 1


def test_nothing_is_filled_for_graphs_that_have_no_memory(folders: dict[str, Path]) -> None:
    runtime, device = make(folders["bert"], "mean", MaskedOps(), graph_bytes=1 << 20)
    left = iter(range(1 << 40, 0, -(1 << 20)))
    device.free_bytes = lambda: next(left)  # type: ignore[method-assign]
    items = some_items((7, 9))
    for _ in range(4):
        runtime.run(items, 1)
    assert runtime.counts["graphs"] == 1
    assert runtime._graphs.fill(items) is not None and runtime._graphs.fill(some_items((40, 50))) is None


@pytest.mark.parametrize("num_tokens", [32, 128, 512, 2048])
def test_a_text_as_long_as_limits_often_are_is_not_filled_up_by_half(folders: dict[str, Path], num_tokens: int) -> None:
    runtime, _ = make(folders["bert"], "mean", MaskedOps(), graph_bytes=1 << 30)
    filled = runtime._graphs.fill([Item(np.zeros(num_tokens, np.int32), 0)])
    assert filled is not None
    bucket, items = filled
    assert sum(item.num_tokens for item in items) == bucket.num_tokens <= num_tokens * 1.125
    assert len(items) == bucket.num_seqs


def test_a_small_batch_has_its_graph_rather_than_its_prefix(folders: dict[str, Path]) -> None:
    """An instruction's keys spare tokens, which cost nothing where launches take the time."""
    options: dict[str, Any] = {"graph_bytes": 1 << 30, "prefix_cache_bytes": 1 << 20}
    runtime, _ = make(folders["qwen"], "lasttoken", MaskedOps(), **options)
    for items in (some_items((5,), prefix=20), some_items((3, 6, 2), prefix=20)) * 2:
        for _ in range(3):
            assert_same(runtime.run(items, 1), reference(folders["qwen"], "lasttoken", items))
    assert runtime.counts["graphs"] == 2 and runtime.counts["graph_replays"] > 3


def test_a_batch_whose_prefix_spares_much_has_no_graph(folders: dict[str, Path]) -> None:
    runtime, _ = make(folders["qwen"], "lasttoken", graph_bytes=1 << 30)
    runtime._graphs.enabled = True
    items = some_items((3,) * 20, prefix=20)
    for _ in range(4):
        assert_same(runtime.run(items, 1), reference(folders["qwen"], "lasttoken", items))
    assert runtime.counts["graphs"] == 0 and not runtime._graphs._seen


def test_ops_that_need_the_host_have_no_graphs(folders: dict[str, Path]) -> None:
    runtime, _ = make(folders["bert"], "mean", graph_bytes=1 << 30)
    for _ in range(4):
        runtime.run(some_items((7,)), 1)
    assert runtime.counts["graphs"] == 0


def test_models_that_need_the_host_have_no_graphs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtp_llm.models.bert.Bert.reads_host", ("relative",))
    runtime, _ = make(folders["bert"], "mean", MaskedOps(), graph_bytes=1 << 30)
    for _ in range(4):
        runtime.run(some_items((7,)), 1)
    assert runtime.counts["graphs"] == 0


def test_data_parallel(folders: dict[str, Path]) -> None:
    replicas = [make(folders["bert"], "mean")[0] for _ in range(2)]
    used: list[int] = []
    for place, replica in enumerate(replicas):
        replica.run = noting(replica.run, used, place)  # type: ignore[method-assign]
    runtime = DataParallelRuntime(replicas)
    assert (runtime.num_cores, runtime.num_devices) == (4, 2)
    batches = [some_items(tuple(range(1, n))) for n in range(3, 15)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda batch: runtime.run(batch, 1), batches))
    for batch, rows in zip(batches, results, strict=True):
        assert_same(rows, reference(folders["bert"], "mean", batch))
    assert set(used) == {0, 1} and "out_of_memory" in runtime.counts


def noting(run: Callable[..., Any], used: list[int], place: int) -> Callable[..., Any]:
    def noted(items: Sequence[Item], num_cores: int) -> Any:
        used.append(place)
        return run(items, num_cores)

    return noted


def test_models_on_one_device(folders: dict[str, Path]) -> None:
    """One lock and one order for all: no model's kernels come between those of another's graph."""
    one, device = make(folders["bert"], "mean", MaskedOps(), graph_bytes=1 << 30)
    other, _ = make(folders["qwen"], "lasttoken", MaskedOps(), device, graph_bytes=1 << 30)
    batches = [some_items(tuple(np.random.default_rng(i).integers(1, 20, 3))) for i in range(10)]
    work = [(runtime, batch) for batch in batches for runtime in (one, other)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda pair: pair[0].run(pair[1], 1), work))
    for (runtime, batch), rows in zip(work, results, strict=True):
        name, mode = ("bert", "mean") if runtime is one else ("qwen", "lasttoken")
        assert_same(rows, reference(folders[name], mode, batch))
    assert one.counts["graphs"] and other.counts["graphs"]


def test_a_second_model_computes_on_the_device_of_the_first(folders: dict[str, Path]) -> None:
    runtimes: list[Any] = []
    for name, replicas in (("bert", 1), ("qwen", 1), ("bert", 2)):
        config = EngineConfig(checkpoint_path=str(folders[name]), backend="torch", device="cpu", dp_size=replicas)
        found = read_model_config(folders[name], config)
        runtimes.append(load_runtime(config, found, runtimes[-1] if runtimes else None))
    devices = {id(replica.device) for runtime in runtimes for replica in runtime.replicas}
    assert len(devices) == 1
    runtimes[1].tasks = tasks_for("lasttoken")
    items = some_items()
    assert_same(runtimes[1].run(items, 1), reference(folders["qwen"], "lasttoken", items))
