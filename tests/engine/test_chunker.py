"""Long texts against transformers and sentence-transformers on the same tiny checkpoint: averaged, and chunked late."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.core import Chunk, FloatArray, Item, Params, Request, TaskType
from rtp_llm.engine.chunker import ChunkRows
from rtp_llm.engine.job import Job
from rtp_llm.engine.loading import load_engine
from rtp_llm.errors import InputTooLarge, InvalidRequest, RequestTooLarge
from tests.backends import BACKENDS
from tests.tasks.test_dense import pooling, save
from tests.token_ids import token_ids

torch = pytest.importorskip("torch")
modules = pytest.importorskip("sentence_transformers.models")

LIMIT = 48  # of the checkpoint: 46 tokens of text
LONG = "the weather is lovely today . he drove to stadium " * 11  # 110 tokens
TEXTS = ["so sunny outside", LONG, "", "a " * 47]
CHUNKS = ["the weather is lovely today .", "he drove to stadium", "so so sunny outside !", "a b c"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A mean-pooled, normalised model with a prompt, saved under its own folder."""
    folder = tmp_path_factory.mktemp("chunked")
    model = save(folder, pooling("mean"), modules.Normalize(), prompts={"query": "query : "})
    model.folder = folder / "saved"
    return model


@pytest.fixture(scope="module", params=BACKENDS)
def model(request: pytest.FixtureRequest, theirs: Any) -> Iterator[Model]:
    BACKENDS[request.param]()
    with Model(theirs.folder, backend=request.param) as loaded:
        yield loaded


def words_of(text: str, room: int) -> list[str]:
    """Every word is a token here, so that chunks of `room` tokens are chunks of words."""
    words = text.split()
    return [" ".join(words[start : start + room]) for start in range(0, len(words), room)] or [""]


def averaged(theirs: Any, text: str, prompt: str = "") -> FloatArray:
    chunks = words_of(text, LIMIT - 2 - len(prompt.split()))
    vectors = theirs.encode([prompt + chunk for chunk in chunks], convert_to_numpy=True)
    if len(chunks) == 1:
        return np.asarray(vectors[0])
    mean = np.average(vectors, axis=0, weights=[len(chunk.split()) for chunk in chunks])
    return np.asarray(mean / np.linalg.norm(mean))


def late(theirs: Any, chunks: list[str], prompt: str = "") -> FloatArray:
    """One forward of transformers over all; the mean of each chunk's hidden states, [CLS] and [SEP] at the ends."""
    tokenizer, encoder = theirs.tokenizer, theirs[0].model
    bodies = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in chunks]
    bodies[0] = [tokenizer.cls_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"], *bodies[0]]
    bodies[-1] = [*bodies[-1], tokenizer.sep_token_id]
    with torch.no_grad():
        states = encoder(torch.tensor([sum(bodies, [])])).last_hidden_state[0].numpy()
    rows = np.split(states, np.cumsum([len(body) for body in bodies])[:-1])
    means = np.stack([row.mean(axis=0) for row in rows])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


def assert_same_bits(model: Model, actual: FloatArray, expected: FloatArray) -> None:
    """Torch's own products may differ in their last bits from one batch to another: docs/numerics.md."""
    if model.info.backend == "torch":
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("prompt", ["", "query : "])
def test_mean(model: Model, theirs: Any, prompt: str) -> None:
    actual = model.embed(TEXTS, chunking="mean", prompt=prompt)
    np.testing.assert_allclose(actual, [averaged(theirs, text, prompt) for text in TEXTS], atol=1e-5)
    assert_same_bits(model, actual[[0, 2]], model.embed([TEXTS[0], TEXTS[2]], prompt=prompt))


def test_mean_of_raw_and_of_sliced_vectors(model: Model) -> None:
    chunks = words_of(LONG, LIMIT - 2)
    weights = [len(chunk.split()) for chunk in chunks]
    for options in ({"normalize": False}, {"dimensions": 8, "normalize": False}):
        expected = np.average(model.embed(chunks, **options), axis=0, weights=weights)
        np.testing.assert_allclose(model.embed(LONG, chunking="mean", **options), expected, atol=1e-5)
    sliced = np.average(model.embed(chunks, dimensions=8), axis=0, weights=weights)
    np.testing.assert_allclose(
        model.embed(LONG, chunking="mean", dimensions=8), sliced / np.linalg.norm(sliced), atol=1e-5
    )


@pytest.mark.parametrize("prompt", ["", "query : "])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_late(model: Model, theirs: Any, count: int, prompt: str) -> None:
    actual = model.embed(CHUNKS[:count], chunking="late", prompt=prompt)
    np.testing.assert_allclose(actual, late(theirs, CHUNKS[:count], prompt), atol=1e-5)
    if count == 1:
        assert_same_bits(model, actual, model.embed(CHUNKS[:1], prompt=prompt))


def test_late_sees_its_neighbours(model: Model) -> None:
    alone = model.embed(CHUNKS)
    assert np.abs(model.embed(CHUNKS, chunking="late") - alone).max() > 1e-3


def test_token_ids(model: Model) -> None:
    ids = [token_ids(model, text) for text in [*CHUNKS, LONG]]
    first, last = token_ids(model, "", add_special_tokens=True)
    whole = [first, *ids[0]], *ids[1:3], [*ids[3], last]
    assert_same_bits(model, model.embed(list(whole), chunking="late"), model.embed(CHUNKS, chunking="late"))
    pieces = [ids[4][start : start + LIMIT] for start in range(0, len(ids[4]), LIMIT)]
    expected = np.average(model.embed(pieces), axis=0, weights=[len(piece) for piece in pieces])
    actual = model.embed([ids[4]], chunking="mean")[0]
    np.testing.assert_allclose(actual, expected / np.linalg.norm(expected), atol=1e-5)


def test_bits_do_not_depend_on_the_batch(model: Model) -> None:
    """Any mixture of requests, in any batch: the bits of each alone."""
    wanted = [Params(), Params(chunking="mean"), Params(chunking="late")]
    requests = [
        Request(inputs=inputs, params=params)
        for inputs in (CHUNKS, [LONG[:90], CHUNKS[0]], [CHUNKS[1]] * 3)
        for params in wanted
    ]
    alone = [model._engine.run_sync(request).outputs for request in requests]
    together = [response.outputs for response in model._engine.run_many([*requests, *reversed(requests)])]
    for one, other in zip([*alone, *reversed(alone)], together, strict=True):
        ((_, rows),), ((_, same),) = one.items(), other.items()
        assert_same_bits(model, rows, same)


def test_what_is_told_of_tokens(theirs: Any) -> None:
    with Model(theirs.folder, backend="numpy", result_cache_mb=1) as model:
        for _ in range(2):  # computed, and from the cache
            mean = model._engine.run_sync(Request(inputs=TEXTS, params=Params(chunking="mean")))
            assert mean.num_tokens == [5, 110 + 3 * 2, 2, 47 + 2 * 2] and not any(mean.truncated)
            late = model._engine.run_sync(Request(inputs=CHUNKS, params=Params(chunking="late")))
            assert late.num_tokens == [7, 4, 5, 4] and not any(late.truncated)
        assert model._engine.run_sync(Request(inputs=TEXTS)).truncated == [False, True, False, True]


@pytest.mark.parametrize(
    ("inputs", "chunking", "message"),
    [
        ([LONG], "late", "112 tokens together, and this model reads 48 at once"),
        (["a", ""], "late", "input 1 has no tokens"),
        (["a", [7]], "late", "not some of each"),
        ([("a", "b")], "mean", "input 0 is a pair"),
        (["a"], "sometimes", "invalid enum value"),
    ],
)
def test_refused_inputs(model: Model, inputs: list[Any], chunking: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        model.embed(inputs, chunking=chunking)


def test_refused_models(tmp_path: Path) -> None:
    save(tmp_path, pooling("cls", "mean"))
    with Model(tmp_path / "saved", backend="numpy") as model:
        assert model.embed(LONG, chunking="mean").shape == (64,)
        with pytest.raises(InvalidRequest, match="pooling is cls.mean, and a chunk's vector must be the mean"):
            model.embed(CHUNKS, chunking="late")
        with pytest.raises(InvalidRequest, match="of dense vectors alone"):
            model.embed_all(CHUNKS, kinds=["dense", "tokens"], chunking="late")


def test_many_chunks_in_one_request(theirs: Any) -> None:
    """More than a tokeniser's part of a large request, and more than a slice of the library's."""
    from rtp_llm.config import EngineConfig

    config = EngineConfig(checkpoint_path=str(theirs.folder), backend="numpy")
    engine: Any = load_engine(config, "m")
    try:
        texts = [LONG] * 300
        rows = engine.run_sync(Request(inputs=texts, params=Params(chunking="mean"))).outputs
        assert len({row.tobytes() for row in next(iter(rows.values()))}) == 1
    finally:
        engine.close()


def test_many_chunks_of_one_input_are_joined() -> None:
    count = 16_384
    chunks = [Item(np.zeros(64, np.int32), 0, chunk=Chunk(place, count, 64)) for place in range(count)]
    job = Job(Request(inputs=["x"], params=Params(chunking="mean")), Future())
    rows, row = ChunkRows(1), np.zeros(4, np.float32)
    job.accept(chunks)
    complete = [rows.add(item, row) for item in chunks]
    assert (
        job.num_chunks == count
        and job.num_tokens == [64 * count] == [len(job.input_ids[0])]
        and complete.index(True) == count - 1
    )


def test_an_input_has_a_bounded_number_of_chunks(theirs: Any) -> None:
    message = "input 1 has 40000 tokens, which are over 16384 chunks of 1: split it"
    with Model(theirs.folder, backend="numpy") as model, pytest.raises(InputTooLarge, match=message):
        model._run(["a", "a " * 40_000], (TaskType.DENSE,), Params(chunking="mean", max_tokens=3), False)


def test_a_request_has_a_bounded_number_of_chunks(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtp_llm.engine.intake._MOST_CHUNKS", 20)
    with Model(theirs.folder, backend="numpy") as model:
        for count, params in ((6, Params(chunking="mean", max_tokens=3)), (21, Params())):
            model._engine.run_sync(Request(inputs=["a b c"] * count, params=params))
        with pytest.raises(RequestTooLarge, match="the request has over 20 chunks: send fewer inputs at a time"):
            model._engine.run_sync(Request(inputs=["a b c"] * 7, params=Params(chunking="mean", max_tokens=3)))


def test_a_prompt_around_each_chunk_counts_before_any_is_made(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Model(theirs.folder, backend="numpy", max_request_tokens=10_000) as model:
        prompt = "the " * (LIMIT - 3)  # a chunk has one token of the text
        assert model.embed("a " * 200, chunking="mean", prompt=prompt).shape == (32,)
        monkeypatch.setattr("rtp_llm.engine.chunker.Item", None)
        with pytest.raises(RequestTooLarge, match="over 10000 tokens"):
            model.embed("a " * 220, chunking="mean", prompt=prompt)


def test_what_is_far_too_long_to_be_read_at_once_is_not_tokenised(model: Model) -> None:
    with pytest.raises(RequestTooLarge, match=r"the inputs have 240000 characters together, the limit is 200000"):
        model.embed(["a b " * 20_000] * 3, chunking="late")
