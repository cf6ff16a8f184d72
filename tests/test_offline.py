"""The library slices what it is given: no limit that is meant for one request stands in the way of many inputs."""

import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.core import Request
from rtp_llm.engine.engine import Engine
from rtp_llm.errors import CheckpointError, EngineFailure, InvalidInput, NotReady, RequestTooLarge
from rtp_llm.runtime.cpu import CpuRuntime
from tests.tasks.checkpoints import LIMIT, loaded, save

pytest.importorskip("torch")
pytest.importorskip("transformers")

LONG = "the weather is lovely today . " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("offline")
    save(path, num_hidden_layers=1)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Model]:
    with loaded(folder) as model:
        yield model


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many inputs the engine is given at a time."""
    noted, submit = list[int](), Engine.submit

    def noting(self: Engine, request: Request, *args: Any, **options: Any) -> Any:
        noted.append(len(request.inputs))
        return submit(self, request, *args, **options)

    monkeypatch.setattr(Engine, "submit", noting)
    return noted


def test_a_slice_has_no_more_tokens_than_a_request_may_have(model: Model, folder: Path, sizes: list[int]) -> None:
    texts = [LONG] * 9 + ["a"]
    expected = model.embed(texts)
    with loaded(folder, max_request_tokens=3 * LIMIT) as small:
        sizes.clear()
        assert np.array_equal(small.embed(texts), expected)
    assert sizes == [3, 3, 3, 1]


def test_long_inputs_make_small_slices(model: Model, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtp_llm.offline._SLICE_TOKENS", 2 * LIMIT)
    model.embed([LONG] * 4 + ["a"] * 60)
    assert sizes == [2, 2, 60]


def test_a_full_queue_is_waited_for(model: Model, folder: Path) -> None:
    texts = [LONG + str(number) for number in range(3000)]
    with loaded(folder, max_queued_tokens=LIMIT, max_bulk_requests=1) as small:
        assert small.embed(texts).shape == (3000, 32)


def test_what_has_more_tokens_than_was_thought_is_asked_in_halves(model: Model, folder: Path, sizes: list[int]) -> None:
    texts = ["a b c ! ? . " * 20 + str(number) for number in range(8)]  # two characters a token
    expected = model.embed(texts, chunking="mean")
    with loaded(folder, max_request_tokens=130) as small:
        sizes.clear()
        assert np.array_equal(small.embed(texts, chunking="mean"), expected)
        assert sizes[0] == 2 and sizes[-8:] == [1] * 8
        with pytest.raises(RequestTooLarge, match="over 130 tokens"):
            small.embed(["a", "a b c " * 100], chunking="mean")


def test_errors_come_in_order_and_name_the_place_among_all_inputs(model: Model) -> None:
    texts: list[Any] = [*["a"] * 300, "\ud800", *["b"] * 500, []]
    with pytest.raises(InvalidInput, match=r"^input 300 is not valid Unicode") as error:
        model.embed(texts)
    assert error.value.index == 300


def test_an_iteration_that_is_broken_off_leaves_no_work(model: Model) -> None:
    engine = model._engine
    responses = engine.run_many(Request(inputs=[f"{n} {m} {LONG}" for m in range(200)]) for n in range(8))
    next(responses)
    responses.close()  # type: ignore[attr-defined]
    assert engine.device.scheduler.queued_items == 0 and not any(engine._jobs.values())


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: what a shell runs in the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_at_once_and_quietly(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, begun, over, ended = CpuRuntime.run, threading.Event(), threading.Event(), list[bool]()

    def held(self: CpuRuntime, *args: Any) -> Any:
        begun.set()
        ended.append(over.wait(60))
        return run(self, *args)

    def interrupt() -> None:
        assert begun.wait(60)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt), loaded(folder) as model:
        monkeypatch.setattr(CpuRuntime, "run", held)
        threading.Thread(target=interrupt).start()
        model.embed([LONG + str(number) for number in range(5000)])
    assert not ended and not caplog.records  # nobody has waited for a step
    over.set()
    with pytest.raises(NotReady, match=r"^this model is closed: load it anew$"):
        model.embed("a")


def test_leaving_with_an_error_closes_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[float]()
    monkeypatch.setattr(Engine, "close", lambda self, timeout, _: asked.append(timeout))
    model = Model(folder, backend="numpy")
    for error in (None, ValueError("the caller's own")):
        model.__exit__(type(error) if error else None, error, None)
    assert asked == [30, 0]
    monkeypatch.undo()
    model.close()


def test_closing_waits_for_nobody_where_nothing_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait of its own ends by its time."""
    model = Model(folder, backend="numpy")
    model.embed(["the weather"] * 100)
    waits, wait_for, join = list[bool](), threading.Condition.wait_for, threading.Thread.join

    def waiting(self: threading.Condition, is_so: Callable[[], bool], timeout: float | None = None) -> bool:
        waits.append(wait_for(self, is_so, timeout))
        return waits[-1]

    def joining(self: threading.Thread, timeout: float | None = None) -> None:
        join(self, timeout)
        waits.append(not self.is_alive())

    monkeypatch.setattr(threading.Condition, "wait_for", waiting)
    monkeypatch.setattr(threading.Thread, "join", joining)
    model.close()
    assert len(waits) > 1 and all(waits)
    with pytest.raises(NotReady, match="this model is closed"):
        model.embed("so sunny")


def soon(is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60  # which passes only where something is kept
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
        gc.collect()
    return is_so()


def test_a_model_that_nobody_has_any_more_is_let_go(folder: Path) -> None:
    """By `del model`, or by a second model under its name: without it all weights would stay."""
    before = set(threading.enumerate())
    model = Model(folder, backend="numpy")
    model.embed("the weather")
    weights = ref(model._engine.runtime.model)
    del model
    assert soon(lambda: weights() is None)
    assert soon(lambda: not any(thread.name.startswith("batch-") for thread in set(threading.enumerate()) - before))


def test_a_model_that_fails_its_canary_leaves_no_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Engine) -> None:
        raise EngineFailure("no")

    before = set(threading.enumerate())
    with monkeypatch.context() as patched, pytest.raises(EngineFailure):
        patched.setattr(Engine, "warm_up", fails)
        Model(folder, backend="numpy")
    assert soon(lambda: not any(thread.name.startswith("batch-") for thread in set(threading.enumerate()) - before))


def test_a_model_that_cannot_be_loaded_ends_what_its_runtime_has_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise CheckpointError("no tokenizer")

    closed = list[CpuRuntime]()
    monkeypatch.setattr(CpuRuntime, "close", lambda self: closed.append(self))
    monkeypatch.setattr("rtp_llm.engine.loading.load_tokenizer", fails)
    with pytest.raises(CheckpointError):
        Model(folder, backend="numpy")
    assert len(closed) == 1
