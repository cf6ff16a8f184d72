"""Custom modules: what they get, what they may return, and how what goes wrong in them is told."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.core import Params, TaskType
from rtp_llm.errors import ConfigError, CustomModuleError, InvalidRequest, RtpError, UnsupportedTask
from rtp_llm.tasks.plain import plain
from tests.tasks.checkpoints import TEXTS, loaded, save

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def path_as_before() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save(folder)
    return folder


def write(folder: Path, body: str, head: str = "", init: str = "pass") -> str:
    """A module `Mine` whose call is `body`, from line 5 of postprocess.py on -> its flag."""
    file = folder / "postprocess.py"
    lines = [head, "class Mine:", f"    def __init__(self, source): {init}", "    def __call__(self, request):"]
    file.write_text("\n".join([*lines, *(f"        {line}" for line in body.splitlines())]) + "\n")
    return f"{file}:Mine"


@pytest.mark.parametrize("backend", ["numpy", "native", "torch"])
@pytest.mark.parametrize("layers", [None, (0, -1), (2, 1, 0)])
def test_hidden_states_equal_transformers(layers: Any, backend: str, checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoint).eval()
    head = "" if layers is None else "import numpy as np"
    flag = write(
        tmp_path, "return list(request.hidden_states), request.input_ids", head, f"self.hidden_layers = {layers}"
    )
    with loaded(checkpoint, backend, custom_module=flag) as ours:
        states, ids = ours.custom(TEXTS)
        alone = [ours.custom([text])[0][0] for text in TEXTS]
    for row, mine in zip(ids, states, strict=True):
        with torch.no_grad():
            output = model(input_ids=torch.from_numpy(row).long()[None], output_hidden_states=True)
        every = torch.cat(output.hidden_states).numpy()
        expected = every[-1] if layers is None else every[list(layers)]
        assert mine.shape == expected.shape and np.abs(mine - expected).max() <= 1e-5
    if backend != "torch":
        assert all(map(np.array_equal, states, alone))


def test_what_it_is_made_from(checkpoint: Path, tmp_path: Path) -> None:
    init = "self.source = source"
    body = (
        "s = self.source\n"
        "cls = s.special_ids['cls']\n"
        "return [s.folder.name, s.config['hidden_size'], s.model_type, s.hidden_size, s.num_layers, s.vocab_size,"
        " s.piece(cls), s.token_id('[CLS]') == cls]"
    )
    with loaded(checkpoint, custom_module=write(tmp_path, body, init=init)) as model:
        made = model.custom("a")
        vocab_size = model.info.vocab_size
    assert made == [checkpoint.name, 32, "bert", 32, 2, vocab_size, "[CLS]", True]


def test_torch_tensors_are_taken_apart_without_importing_torch(checkpoint: Path, tmp_path: Path) -> None:
    body = (
        "x = torch.from_numpy(request.hidden_states[0]).requires_grad_()\n"
        "return {'first': x[0], 'half': [x[:1].bfloat16()], 'sum': x.sum(), 'count': torch.tensor(3)}"
    )
    with loaded(checkpoint, custom_module=write(tmp_path, body, "import torch")) as model:
        answer = model.custom("the weather")
    assert answer["first"].shape == (32,) and answer["half"][0].dtype == np.float32
    assert isinstance(answer["sum"], float) and answer["count"] == 3


def test_parameters_reach_it(checkpoint: Path, tmp_path: Path) -> None:
    with loaded(
        checkpoint, custom_module=write(tmp_path, "return [dict(request.extra), len(request.input_ids[0])]")
    ) as m:
        assert m.custom("a", tenant="x", depth={"n": [1]})[0] == {"tenant": "x", "depth": {"n": [1]}}
        assert m.custom("a", params=Params(prompt="b c "))[1] == m.custom("a")[1] + 2
        assert m.info.tasks == (TaskType.CUSTOM,)
        with pytest.raises(UnsupportedTask, match="offers custom, not dense"):
            m.embed("a")


def test_the_checkpoints_own_tasks_stand_beside_it(checkpoint: Path, tmp_path: Path) -> None:
    flag = write(tmp_path, "return request.embeddings", init="self.reads = 'embeddings'")
    with loaded(checkpoint, custom_module=flag, task_type="DENSE_EMBEDDING", pooling="max") as model:
        assert model.info.tasks == (TaskType.CUSTOM, TaskType.DENSE, TaskType.TOKENS)
        assert np.array_equal(model.custom(TEXTS), model.embed(TEXTS))


def test_one_bad_request_fails_alone(checkpoint: Path, tmp_path: Path) -> None:
    body = "if request.extra.get('bad'):\n    return request.extra['tenant']\nreturn 1"
    with loaded(checkpoint, custom_module=write(tmp_path, body)) as model:
        with pytest.raises(CustomModuleError, match=r"^postprocess.py:6: KeyError: 'tenant'$"):
            model.custom("a", bad=True)
        assert model.custom("a") == 1


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("raise ValueError('tenant: unknown')", InvalidRequest, "^tenant: unknown$"),
        ("raise ValueError", InvalidRequest, "refused"),
        ("from rtp_llm.errors import RequestTooLarge\nraise RequestTooLarge('much')", InvalidRequest, "^much$"),
        ("np.zeros(2) + np.zeros(3)", CustomModuleError, r"^postprocess.py:5: ValueError: operands could not"),
        ("open('/no/such/place.txt')", CustomModuleError, r"^postprocess.py:5: FileNotFoundError: .*'place.txt'$"),
        ("\nimport json\njson.loads('{')", CustomModuleError, r"^postprocess.py:7: JSONDecodeError: "),
        ("sys.exit(0)", CustomModuleError, r"^postprocess.py:5: SystemExit: 0$"),
        ("assert False", CustomModuleError, r"^postprocess.py:5: AssertionError$"),
        ("def f(): f()\nf()", CustomModuleError, r"^postprocess.py:5: RecursionError: "),
        ("\nreturn {'a': [1, np.nan]}", CustomModuleError, r"postprocess.py:6: what Mine returned\['a'\]\[1\] is NaN"),
        ("if 1:\n    return float('nan')\nreturn 1", CustomModuleError, r"postprocess.py:4: what Mine returned is NaN"),
        ("return object()", CustomModuleError, "returned is of type object; return numpy arrays"),
        ("return {(1, 2): 3}", CustomModuleError, "key of type tuple"),
        ("return 2 ** 99", CustomModuleError, "whole number of 100 bits"),
        ("return np.array(['a'])", CustomModuleError, "array of <U1"),
        ("a = []\na.append(a)\nreturn a", CustomModuleError, "RecursionError"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_a_call(
    body: str, kind: type[RtpError], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    flag = write(tmp_path, body, "import sys; import numpy as np")
    with loaded(checkpoint, custom_module=flag) as model, pytest.raises(kind, match=message) as caught:
        model.custom("a")
    assert str(tmp_path) not in caught.value.message
    assert caught.value.status == (500 if kind is CustomModuleError else caught.value.status)


@pytest.mark.parametrize(
    ("head", "init", "message"),
    [
        ("import no_such_library", "pass", r"postprocess.py:1: ModuleNotFoundError: No module named 'no_such_library'"),
        ("x = (", "pass", r"postprocess.py:\d: SyntaxError: "),
        ("raise SystemExit(0)", "pass", r"postprocess.py:1: SystemExit: 0"),
        ("", "source.folder['a']", r"postprocess.py:3: TypeError: "),
        ("", "raise ValueError('one\\n   line')", r"postprocess.py:3: ValueError: one line$"),
        ("", "self.reads = 'tea'", r"postprocess.py:2: Mine.reads is 'tea'; it must be 'tokens' or"),
        ("", "self.dimension = 0", r"postprocess.py:2: Mine.dimension is 0; it must be a positive"),
        ("", "self.hidden_layers = (3,)", r"Mine.hidden_layers is \(3,\); it must be whole numbers from -3 to 2"),
        ("", "self.hidden_layers = 1", r"Mine.hidden_layers is 1; it must be whole numbers"),
    ],
)
def test_what_goes_wrong_at_the_start(head: str, init: str, message: str, checkpoint: Path, tmp_path: Path) -> None:
    flag = write(tmp_path, "return 1", head, init)
    with pytest.raises(ConfigError, match=message) as caught, loaded(checkpoint, custom_module=flag):
        pass
    assert "\n" not in caught.value.message and str(tmp_path) in caught.value.message


def test_an_interrupt_of_the_user_s_own_fails_its_request_alone(checkpoint: Path, tmp_path: Path) -> None:
    """On the main thread it would be Python's, as of Ctrl-C; a server computes on others."""
    flag = write(tmp_path, "if request.extra.get('bad'):\n    raise KeyboardInterrupt\nreturn 1")
    with loaded(checkpoint, custom_module=flag) as model, ThreadPoolExecutor(1) as thread:
        with pytest.raises(CustomModuleError, match=r"^postprocess.py:6: KeyboardInterrupt$"):
            thread.submit(model.custom, "a", bad=True).result()
        assert thread.submit(model.custom, "a").result() == 1
        model._engine.check_health()


def test_a_class_that_cannot_be_called(checkpoint: Path, tmp_path: Path) -> None:
    flag = write(tmp_path, "return 1")
    (tmp_path / "postprocess.py").write_text("class Mine:\n    def __init__(self, source): pass\n")
    with pytest.raises(ConfigError, match=r"postprocess.py:1: Mine has no __call__, which answers a CustomRequest"):
        with loaded(checkpoint, custom_module=flag):
            pass


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("postprocess.py", "is not of the form FILE.py:Class"),
        ("postprocess.py:", "is not of the form"),
        ("{folder}/nowhere.py:Mine", "nowhere.py is not there"),
        ("{folder}/postprocess.py:Other", "postprocess.py has no class Other; it has Mine"),
        ("{folder}/postprocess.py:numpy", "has no class numpy; it has Mine"),
    ],
)
def test_a_class_that_is_not_there(flag: str, message: str, checkpoint: Path, tmp_path: Path) -> None:
    write(tmp_path, "return 1", "import numpy")
    with pytest.raises(ConfigError, match=message), loaded(checkpoint, custom_module=flag.format(folder=tmp_path)):
        pass


def test_a_class_that_cannot_be_called_so(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    def __call__(self): pass\n")
    with pytest.raises(ConfigError, match=r"mine.py:1: TypeError: Mine\(\) takes no arguments"):
        Model(str(checkpoint), custom_module=f"{tmp_path / 'mine.py'}:Mine")
    (tmp_path / "mine.py").write_text(
        "\n\nclass Mine:\n    def __init__(self, s): pass\n    def __call__(self): pass\n"
    )
    with (
        loaded(checkpoint, custom_module=f"{tmp_path / 'mine.py'}:Mine") as model,
        pytest.raises(CustomModuleError, match=r"^mine.py:3: TypeError: "),
    ):
        model.custom("a")


def test_a_class_that_no_line_begins(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("Mine = type('Mine', (), {'__init__': lambda s, x: None, '__call__': print})\n")
    with loaded(checkpoint, custom_module=f"{tmp_path / 'mine.py'}:Mine") as model:
        assert model.custom("a") is None
    (tmp_path / "mine.py").write_text("Mine = type('Mine', (), {})\n")
    with pytest.raises(ConfigError, match=r"mine.py: TypeError: Mine\(\) takes no arguments"):
        Model(str(checkpoint), custom_module=f"{tmp_path / 'mine.py'}:Mine")


def test_task_type_custom_needs_a_module(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="needs --custom_module"), loaded(checkpoint, task_type="CUSTOM"):
        pass


@pytest.mark.parametrize("statement", ["import neighbour", "from . import neighbour"])
def test_it_may_import_what_lies_beside_it(statement: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("def answer(extra):\n    return extra['n']\n")
    sys.modules.pop("neighbour", None)
    flag = write(tmp_path, "return neighbour.answer(request.extra)", statement)
    with loaded(checkpoint, custom_module=flag) as model:
        assert model.custom("a", n=42) == 42
        with pytest.raises(CustomModuleError, match=r"^neighbour.py:2: KeyError: 'n'$"):
            model.custom("a")
    sys.modules.pop("neighbour", None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return request.hidden_states[0][:, :4]", r"returned an array \(3, 4\); its dimension says \(2, 4\)"),
        ("return [[1.0], [1.0, 2.0]]", "unequal lengths"),
        ("return ['a', 'b']", "array of <U1"),
    ],
)
def test_vectors_of_another_size(body: str, message: str, checkpoint: Path, tmp_path: Path) -> None:
    flag = write(tmp_path, body, init="self.dimension = 4")
    with loaded(checkpoint, custom_module=flag) as model, pytest.raises(CustomModuleError, match=message):
        model.embed(["a", "b"])


def test_vectors_are_embeddings_as_usual(checkpoint: Path, tmp_path: Path) -> None:
    flag = write(tmp_path, "return [s[0, :4].tolist() for s in request.hidden_states]", init="self.dimension = 4")
    with loaded(checkpoint, custom_module=flag) as model:
        vectors = model.embed(TEXTS)
        assert model.info.tasks == (TaskType.CUSTOM, TaskType.DENSE) and model.info.dimension == 4
        assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), 4)
        short = vectors[:, :2] / np.linalg.norm(vectors[:, :2], axis=1, keepdims=True)
        assert np.allclose(model.embed(TEXTS, dimensions=2, normalize=True), short)
        with pytest.raises(InvalidRequest, match="not between 1 and 4"):
            model.embed(TEXTS, dimensions=5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, 2.5, None, True, "a"), [1, 2.5, None, True, "a"]),
        ({1: np.float32(0.5), "b": np.int64(2)}, {"1": 0.5, "b": 2}),
        (np.array(3.5), 3.5),
        (np.bool_(True), True),
    ],
)
def test_plain(value: Any, expected: Any) -> None:
    assert plain(value, "x") == expected


class _Colour(str, Enum):
    RED = "red"


class _Level(IntEnum):
    HIGH = 3


class _Metres(float):
    pass


def test_scalars_of_the_users_own_classes_become_plain_ones() -> None:
    """What the answer is written by may be another process, which does not know them."""
    made = plain([_Colour.RED, _Level.HIGH, _Metres(1.5)], "x")
    assert made == ["red", 3, 1.5] and [type(one) for one in made] == [str, int, float]
