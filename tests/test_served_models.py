"""Which models are served: repeated flags, names, and a YAML file; what is wrong is one line that helps."""

from pathlib import Path
from typing import Any

import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError
from rtp_llm.flags import Repeated, parse_serve
from rtp_llm.served_models import ServedModel, served_models


def models(line: str, **environ: str) -> list[ServedModel]:
    return served_models(*parse_serve(line.split(), environ))


def names(line: str, **environ: str) -> list[tuple[str, str]]:
    return [(model.name, model.config.checkpoint_path) for model in models(line, **environ)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/m/mini", [("mini", "/m/mini")]),
        ("--checkpoint_path /m/mini", [("mini", "/m/mini")]),
        ("--checkpoint_path /m/mini --served_model_name x", [("x", "/m/mini")]),
        ("--checkpoint_path x=/m/mini", [("x", "/m/mini")]),
        ("--checkpoint_path /m/a --checkpoint_path /m/b", [("a", "/m/a"), ("b", "/m/b")]),
        ("/m/a --CHECKPOINT-PATH /m/b", [("a", "/m/a"), ("b", "/m/b")]),
        ("--model BAAI/a --model y=BAAI/a", [("a", "BAAI/a"), ("y", "BAAI/a")]),
        (
            "--checkpoint_path /m/a --served_model_name x --checkpoint_path /m/b --served_model_name y",
            [("x", "/m/a"), ("y", "/m/b")],
        ),
        ("--checkpoint_path /m/a=b", [("a=b", "/m/a=b")]),
        ("--checkpoint_path ./a=b", [("a=b", "./a=b")]),
        ("--checkpoint_path /m/a --served_model_name BAAI/a", [("BAAI/a", "/m/a")]),
    ],
)
def test_flags(line: str, expected: list[tuple[str, str]]) -> None:
    assert names(line) == expected


def test_a_folder_with_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert names("a=b") == [("a=b", "a=b")]


def test_one_model_by_the_environment() -> None:
    assert names("", CHECKPOINT_PATH="/m/a,b", SERVED_MODEL_NAME="x") == [("x", "/m/a,b")]


def test_flags_hold_for_all_models() -> None:
    assert [
        model.config.max_seq_len for model in models("--checkpoint_path /a --checkpoint_path /b --max_seq_len 9")
    ] == [9, 9]


def written(tmp_path: Path, text: str) -> list[ServedModel]:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return models(f"--models {path} --pooling cls --num_threads 2")


def test_a_file(tmp_path: Path) -> None:
    text = """
    models:
      - checkpoint_path: /m/mini
        aliases: [text-embedding-3-small, other]
      - {model: BAAI/bge-reranker-base, name: ranker, task-type: reranker, quantization: int8, revision: "1",
         pooling: mean}
    """
    first, second = written(tmp_path, text)
    assert (first.name, first.aliases, first.config.pooling) == ("mini", ("text-embedding-3-small", "other"), "cls")
    own = second.config
    assert (second.name, own.task_type, own.quantization, own.revision) == ("ranker", "RERANKER", "int8", "1")
    assert own.pooling == "mean" and own.num_threads == first.config.num_threads == 2


def test_a_file_by_the_environment(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("models: [{checkpoint_path: /m/mini}]")
    assert names("", RTP_LLM_MODELS=str(tmp_path / "m")) == [("mini", "/m/mini")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{checkpoint: /m}", "model 1: unknown option checkpoint; did you mean checkpoint_path?"),
        ("{checkpoint_path: /m, polling: cls}", "did you mean pooling?"),
        ("{checkpoint_path: /m, pooling: media}", "pooling: 'media' is not one of auto, cls"),
        ("{checkpoint_path: /m, max_seq_len: many}", "max_seq_len: 'many' is a str; int is needed"),
        ("{checkpoint_path: /m, trust_remote_code: 1}", "trust_remote_code: 1 is an int; bool is needed"),
        ("{checkpoint_path: /m, revision: 1.0}", "revision: 1.0 is a float; str is needed"),
        ("{checkpoint_path: /m, num_threads: 2}", "num_threads: all models share this option"),
        ("{checkpoint_path: /m, start_port: 2}", "start_port: all models share this option"),
        ("{checkpoint_path: /m, model: /n}", "checkpoint_path is there twice"),
        ("{checkpoint_path: /m, aliases: [1]}", "is not a list of names"),
        ("{name: x}", "checkpoint_path is missing"),
        ("/m", "model 1: '/m' is not a mapping"),
        ("{checkpoint_path: /m}, {checkpoint_path: /n, aliases: [m]}", "/m and /n are both called 'm'"),
        ("{checkpoint_path: /m, lora_modules: [m=/l]}", "/m and the adapter /l are both called 'm'"),
        ("{checkpoint_path: /m, lora_modules: [a=/l, a=/k]}", "the adapter /l and the adapter /k are both called 'a'"),
        ("{checkpoint_path: /m, lora_modules: [/l]}", "lora_modules: '/l' is not NAME=FOLDER"),
    ],
)
def test_wrong_entries(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        written(tmp_path, f"models: [{entry}]")
    assert message in raised.value.message and raised.value.param and "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one key, `models`"),
        ("- checkpoint_path: /m", "one key, `models`"),
        ("models: []", "a list of at least one model"),
        ("models: {a: b}", "a list of at least one model"),
        ("models: [}", "is not YAML"),
        ("models: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("models: []\nmodel: []", "one key, `models`"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        written(tmp_path, text)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--models /no/file", "/no/file cannot be read"),
        ("--models /no/file --checkpoint_path /m", "not both"),
        ("/m/a /m/a --served_model_name x", "unexpected argument"),
        ("--checkpoint_path /m/a --checkpoint_path /n/a", "/m/a and /n/a are both called 'a'; give names"),
        ("--checkpoint_path /m/a --checkpoint_path /m/b --served_model_name x", "1 names for 2 checkpoints"),
        ("--checkpoint_path x=/m/a --served_model_name y", "give one for each, or NAME=PATH"),
        ("--checkpoint_path BAAI/a=/m/a", "give --served_model_name BAAI/a and --checkpoint_path /m/a"),
    ],
)
def test_wrong_lines(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ConfigError, SystemExit)) as raised:
        models(line)
    assert message in str(raised.value) + capsys.readouterr().err


def test_the_library_serves_what_it_is_given() -> None:
    config: Any = ServerConfig(checkpoint_path="/m")
    assert served_models(config, Repeated(("/m",), ()))[0].config == config
