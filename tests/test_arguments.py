"""What callers of the library pass: any sequence is served, and all else is an error of ours that names the place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.errors import ConfigError, InvalidRequest, RtpError
from tests.tasks.checkpoints import loaded, save, save_m3

pytest.importorskip("torch")
pytest.importorskip("transformers")


class Column:
    """As pandas' Series and polars' are."""

    def __init__(self, *values: Any) -> None:
        self._values = list(values)

    def tolist(self) -> list[Any]:
        return self._values


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("m3")
    save_m3(folder)
    with loaded(folder) as model:
        yield model


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("reranker")
    save(folder, "BertForSequenceClassification", num_labels=1)
    with loaded(folder) as model:
        yield model


@pytest.mark.parametrize(
    "make",
    [
        lambda: ("a", "b c"),
        lambda: (text for text in ["a", "b c"]),
        lambda: iter({"a": 1, "b c": 2}),
        lambda: np.array(["a", "b c"]),
        lambda: np.array(["a", "b c"], dtype=object),
        lambda: Column("a", np.str_("b c")),
    ],
)
def test_any_sequence_of_texts(make: Any, m3: Model) -> None:
    assert np.array_equal(m3.embed(make()), m3.embed(["a", "b c"]))


@pytest.mark.parametrize("ids", [[np.int64(5), np.int64(6)], np.array([5, 6])])
def test_token_ids_of_numpy(ids: Any, m3: Model) -> None:
    assert np.array_equal(m3.embed([ids]), m3.embed([[5, 6]]))


def test_one_text_is_a_row(m3: Model) -> None:
    assert np.array_equal(m3.embed("a"), m3.embed(["a"])[0])
    assert m3.embed(np.str_("a")).shape == m3.embed(np.array("a")).shape[1:]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "inputs is None"),
        (5, "inputs is an int"),
        (b"a", "inputs is a bytes; decode it to text first"),
        ({"a": "b"}, "inputs is a dict"),
        ({"a"}, "inputs is a set"),
        (["a", None], r"inputs\[1\] is None; a text, a pair"),
        ([1, 2], r"inputs\[0\] is an int"),
        (["a", "b", b"c"], r"inputs\[2\] is a bytes"),
        ([("a", "b", "c")], r"inputs\[0\] is a tuple of 3"),
        ([("a", None)], r"inputs\[0\] is a tuple of 2"),
        ([["a"]], "input 0: 'a' is not a token id"),
        (np.array([1.5]), r"inputs\[0\] is a float"),
    ],
)
def test_inputs_that_cannot_be_read(values: Any, message: str, m3: Model) -> None:
    for method in (m3.embed, m3.embed_sparse, m3.embed_colbert, m3.embed_all):
        with pytest.raises(InvalidRequest, match=message):
            method(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dimensions": "8"}, "dimensions: '8': expected `int | null`"),
        ({"dimensions": True}, "dimensions: True"),
        ({"dimensions": 0}, "dimensions: 0 is not between"),
        ({"normalize": 1}, "normalize: 1"),
        ({"prompt": b"x"}, "prompt: b'x'"),
        ({"prompt_name": ["x"]}, "prompt_name: "),
        ({"truncate": None}, "truncate: None"),
    ],
)
def test_params_of_the_wrong_type(values: dict[str, Any], message: str, m3: Model) -> None:
    with pytest.raises(InvalidRequest, match=message):
        m3.embed(["a"], **values)


def test_params_of_numpy_and_unknown_ones(m3: Model) -> None:
    assert m3.embed(["a"], dimensions=np.int64(8)).shape == (1, 8)
    with pytest.raises(InvalidRequest, match="truncation: 'x': invalid enum value 'x'"):
        m3.embed_sparse(["a"], truncation="x")
    with pytest.raises(TypeError, match="unexpected keyword argument 'tokens'"):
        m3.embed_sparse(["a"], tokens=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "cosine"}, "kind: 'cosine' is not one of dense, sparse, colbert, hybrid"),
        ({"kind": None}, "kind: None"),
        ({"kind": "hybrid", "weights": 5}, "weights is an int"),
        ({"kind": "hybrid", "weights": [1, "x", 1]}, r"weights\[1\] is a str; a number"),
        ({"kind": "hybrid", "weights": [1]}, "is not three numbers"),
        ({"left": None}, "left is None"),
        ({"right": [None]}, r"right\[0\] is None"),
    ],
)
def test_similarity(values: dict[str, Any], message: str, m3: Model) -> None:
    assert m3.similarity("a", (text for text in ("b", "c"))).shape == (1, 2)
    with pytest.raises(InvalidRequest, match=message):
        m3.similarity(**{"left": ["a"], "right": ["b"], **values})


@pytest.mark.parametrize(
    ("query", "documents", "top_k", "message"),
    [
        (None, ["a"], None, "query is None; a text is needed"),
        ("q", None, None, "documents is None"),
        ("q", ["a", 5], None, r"documents\[1\] is an int"),
        ("q", ["a"], 0, "top_k: 0 is not a whole number of at least 1"),
        ("q", ["a"], "1", "top_k: '1'"),
    ],
)
def test_rerank(query: Any, documents: Any, top_k: Any, message: str, reranker: Model) -> None:
    assert len(reranker.rerank("q", np.array(["a", "b"]), top_k=np.int64(1))) == 1
    with pytest.raises(InvalidRequest, match=message):
        reranker.rerank(query, documents, top_k=top_k)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (None, {}, "checkpoint_path: None is None; str is needed"),
        (b"x", {}, "checkpoint_path: b'x' is a bytes"),
        ("/no", {"num_threads": "4"}, "num_threads: '4' is a str; int is needed"),
        ("/no", {"warm_up": 1}, "warm_up: 1 is an int; bool is needed"),
        (Path("/no"), {}, "there is no folder '/no'"),
        ("x" * 5000, {"hf_hub_offline": True}, "cannot be loaded: OSError"),
    ],
)
def test_options_of_a_model(path: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Model(path, **options)
    with pytest.raises(TypeError, match="'threads'"):
        Model("/no", threads=1)


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    save(tmp_path)
    with loaded(tmp_path) as model:
        pass
    with pytest.raises(RtpError):
        model.embed("a")
