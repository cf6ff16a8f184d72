"""`bind`: prefixes, renames, fusion, and one error for all that does not fit."""

from pathlib import Path

import numpy as np
import pytest

from rtp_llm.checkpoint import Parameter, TensorInfo, bind
from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.errors import CheckpointError


class Source:
    """Tensors in memory: element i is i plus the place of its name."""

    path = Path("model.safetensors")

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.tensors = {name.replace("__", "."): TensorInfo("fp32", shape) for name, shape in shapes.items()}
        self.reads: list[str] = []
        self.closed = False

    def read(self, name: str) -> FloatArray:
        self.reads.append(name)
        info = self.tensors[name]
        return (np.arange(info.num_elements, dtype=np.float32) + 100 * list(self.tensors).index(name)).reshape(
            info.shape
        )

    def read_int8(self, name: str) -> Int8Array:
        raise AssertionError("no tensor here is int8")

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        return self.read(name).take(range(start, stop), axis)

    def file(self, name: str) -> Path:
        return self.path

    def close(self) -> None:
        self.closed = True


def test_fused_parameters_are_concatenated_when_asked_for() -> None:
    source = Source(q=(2, 3), k=(1, 3), v=(1, 3), norm=(3,))
    weights = bind(source, {"qkv": Parameter(("q", "k", "v"), (4, 3)), "norm": Parameter(("norm",), (3,))})
    assert source.reads == [] and list(weights) == ["qkv", "norm"] and len(weights) == 2
    assert weights["qkv"].tolist() == [[0, 1, 2], [3, 4, 5], [100, 101, 102], [200, 201, 202]]
    assert source.reads == ["q", "k", "v"]
    weights.close()
    assert source.closed


@pytest.mark.parametrize("name", ["bert__embed", "model__bert__embed", "model__embed", "embed"])
def test_prefixes_are_stripped_where_present(name: str) -> None:
    weights = bind(Source(**{name: (2,)}), {"table": Parameter(("embed",), (2,))}, prefixes=("model.", "bert."))
    assert weights["table"].tolist() == [0, 1]


def test_renames() -> None:
    source = Source(norm__gamma=(2,), norm__beta=(2,))
    wanted = {"weight": Parameter(("norm.weight",), (2,)), "bias": Parameter(("norm.bias",), (2,))}
    renames = ((r"norm\.gamma$", "norm.weight"), (r"norm\.beta$", "norm.bias"))
    assert bind(source, wanted, renames=renames)["bias"].tolist() == [100, 101]


def test_unused_tensors_must_be_named() -> None:
    source = Source(bert__embed=(2,), bert__pooler__weight=(2,), position_ids=(1, 5))
    wanted = {"table": Parameter(("embed",), (2,))}
    assert bind(source, wanted, prefixes=("bert.",), ignore=(r"^pooler\.", "position_ids$"))["table"].shape == (2,)
    with pytest.raises(CheckpointError, match=r"describes: 1 unexpected: pooler\.weight$"):
        bind(source, wanted, prefixes=("bert.",), ignore=("position_ids$",))


def test_a_tensor_may_serve_twice() -> None:
    weights = bind(Source(a=(2,)), {"one": Parameter(("a",), (2,)), "two": Parameter(("a", "a"), (4,))})
    assert weights["two"].tolist() == [0, 1, 0, 1]


def test_one_error_lists_everything() -> None:
    source = Source(a=(2, 3), b=(2,), c=(1,))
    wanted = {"x": Parameter(("a", "b"), (4, 3)), "y": Parameter(("d",), (1,)), "z": Parameter(("a",), (3, 2))}
    with pytest.raises(CheckpointError) as raised:
        bind(source, wanted)
    assert raised.value.message == (
        "model.safetensors does not fit the model that config.json describes: 1 missing: d; 1 unexpected: c; "
        "2 of the wrong shape: a + b [2, 3] + [2], needed [4, 3], a [2, 3], needed [3, 2]"
    )


@pytest.mark.parametrize("shape", [(), (0,), (2,), (4, 3), (3, 4, 1)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match="1 of the wrong shape: a "):
        bind(Source(a=shape), {"a": Parameter(("a",), (3, 4))})


def test_a_scalar_has_its_shape() -> None:
    assert bind(Source(a=()), {"a": Parameter(("a",), ())})["a"].shape == ()


def test_long_lists_are_cut() -> None:
    wanted = {str(i): Parameter((f"layer.{i}",), (1,)) for i in range(25)}
    with pytest.raises(CheckpointError, match=r"25 missing: layer\.0, .*, layer\.9 and 15 more$"):
        bind(Source(), wanted)


def test_two_tensors_of_one_name() -> None:
    with pytest.raises(CheckpointError, match=r"'bert\.embed' and 'embed' are both 'embed' of the model"):
        bind(Source(bert__embed=(2,), embed=(2,)), {}, prefixes=("bert.",))
