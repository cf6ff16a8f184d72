"""Command line and environment: the original's launch lines, and helpful refusals."""

import logging
from collections.abc import Mapping, Sequence

import pytest

from rtp_llm.config import EngineConfig, ServerConfig
from rtp_llm.errors import ConfigError
from rtp_llm.flags import CommandParser, parse_command, parse_serve

DOCUMENTED = (
    "--checkpoint_path /models/bert --model_type bert --act_type fp16 --start_port 8088 "
    "--TASK_TYPE DENSE_EMBEDDING --MAX_CONTEXT_BATCH_SIZE 20"
)
EXPECTED = ServerConfig(
    checkpoint_path="/models/bert",
    model_type="bert",
    act_type="fp16",
    start_port=8088,
    task_type="DENSE_EMBEDDING",
    max_context_batch_size=20,
)


def parse_args(argv: Sequence[str], environ: Mapping[str, str]) -> ServerConfig:
    return parse_serve(argv, environ)[0]


@pytest.mark.parametrize(
    "line",
    [
        DOCUMENTED,
        DOCUMENTED.lower().replace("dense_embedding", "DENSE_EMBEDDING"),
        DOCUMENTED.replace("_path", "-path").replace("TASK_TYPE", "task-type").replace("MAX_CONTEXT", "max-context"),
        "--checkpoint_path=/models/bert --model_type=bert --act_type=fp16 --TASK_TYPE=DENSE_EMBEDDING "
        "--MAX_CONTEXT_BATCH_SIZE=20",
        "/models/bert --model-type bert --dtype half --task_type dense_embedding --max_context_batch_size 20",
    ],
)
def test_spellings_of_the_documented_line(line: str) -> None:
    assert parse_args(line.split(), {}) == EXPECTED


def test_environment_only() -> None:
    environ = {
        "CHECKPOINT_PATH": "/models/bert",
        "MODEL_TYPE": "bert",
        "ACT_TYPE": "FP16",
        "TASK_TYPE": "DENSE_EMBEDDING",
        "MAX_CONTEXT_BATCH_SIZE": "20",
    }
    assert parse_args([], environ) == EXPECTED


@pytest.mark.parametrize("argument", [["--start_port", "1"], ["--START_PORT=1"]])
def test_command_line_beats_environment(argument: list[str]) -> None:
    config = parse_args(["/m", *argument], {"START_PORT": "2", "SERVED_MODEL_NAME": "named"})
    assert (config.start_port, config.served_model_name) == (1, "named")


def test_empty_environment_variable_is_unset() -> None:
    assert parse_args(["/m"], {"TASK_TYPE": "", "START_PORT": ""}).start_port == 8088


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["/m", "--start_prot", "1"], {}, "did you mean --start_port?"),
        (["/m", "--zzzz"], {}, "unknown option --zzzz"),
        (["/m", "--task_type", "DENSE"], {}, "DENSE_EMBEDDING"),
        (["/m", "--act_type", "fp8"], {}, "bf16, fp16, fp32"),
        (["/m", "--start_port", "x"], {}, "'x' is not a whole number"),
        (["/m", "--start_port", "70000"], {}, "above the most allowed, 65535"),
        (["/m", "--warm_up", "maybe"], {}, "not a yes or no"),
        (["/m"], {"START_PORT": "x"}, "environment variable START_PORT"),
        ([], {}, "--checkpoint_path FOLDER or set CHECKPOINT_PATH"),
        (["/m", "/n"], {}, "unexpected argument '/n'"),
    ],
)
def test_refusals_exit_2(
    argv: list[str], environ: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_args(argv, environ)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--warm_up"], ["--warm_up", "yes"], ["--model_warm_up=1"]])
def test_booleans(flag: list[str]) -> None:
    assert parse_args(["/m", *flag], {"WARM_UP": "0"}).warm_up


@pytest.mark.parametrize(
    "argv", [["--ep_size", "2", "/m"], ["--ENABLE_CUDA_GRAPH=1", "/m"], ["/m", "--worker_info_port_num", "4"]]
)
def test_options_without_meaning_are_logged(argv: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert parse_args(argv, {}).checkpoint_path == "/m"
    assert "has no effect" in caplog.text


def test_classifier_is_seq_classification() -> None:
    assert parse_args(["/m", "--task_type", "CLASSIFIER"], {}).task_type == "SEQ_CLASSIFICATION"


def test_help_names_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--help"], {})
    text = capsys.readouterr().out
    assert all(f"\n{group}:" in text for group in ("model", "hub", "compute", "batching", "server"))


def test_the_python_api_checks_too() -> None:
    with pytest.raises(ConfigError, match="act_type: 'fp8' is not one of"):
        EngineConfig(checkpoint_path="/m", act_type="fp8")


@pytest.mark.parametrize(("path", "name"), [("/models/bge-small/", "bge-small"), ("BAAI/bge-m3", "bge-m3")])
def test_model_name_is_the_folder(path: str, name: str) -> None:
    assert ServerConfig(checkpoint_path=path).model_name == name


@pytest.mark.parametrize(("given", "expected"), [("0", 0.0), ("0.25", 0.25), ("1", 1.0)])
def test_a_share(given: str, expected: float) -> None:
    assert parse_args(["/m", "--log_requests", given], {}).log_requests == expected


@pytest.mark.parametrize("given", ["nan", "inf", "half", "-0.1", "1.1"])
def test_what_is_no_share(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(["/m", f"--log_requests={given}"], {})
    assert "log_requests" in capsys.readouterr().err


def test_the_originals_time_to_drain() -> None:
    assert parse_args(["/m", "--frontend_pre_stop_drain_seconds", "7"], {}).drain_seconds == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/m --start_prot 1", "unknown option --start_prot; did you mean --start_port? (--help lists all options)"),
        ("/m --num_threads x", "num_threads: 'x' is not a whole number (--help lists all options)"),
        ("/m --port 9000 --grpc_port 9000", "grpc_port and start_port are both 9000: each needs one"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(line.split(), {})
    said = capsys.readouterr().err
    assert caught.value.code == 2 and message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/m --frontend_server_count 2", "--frontend_server_count is an option of the server (rtp-llm serve)"),
        ("--frontend-server-count 2 /m", "--frontend_server_count is an option of the server (rtp-llm serve)"),
        ("/m --hostname=::1", "--hostname is an option of the server (rtp-llm serve)"),
        ("--model /m", "--model: the checkpoint is this command's first argument, without a flag"),
        ("/m --num_thread 2", "unknown option --num_thread; did you mean --num_threads?"),
    ],
)
def test_options_of_other_commands(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("rtp-llm embed", "", needs_checkpoint=True)
    with pytest.raises(SystemExit):
        parse_command(parser, line.split(), {}, EngineConfig)
    assert message in capsys.readouterr().err


def test_teis_spellings() -> None:
    line = (
        "--model-id /m --hostname 127.0.0.1 --payload-limit 2000000 --max-concurrent-requests 7 --auto-truncate false "
        "--default-prompt-name query"
    )
    assert parse_args(line.split(), {"LOG_LEVEL": "trace"}) == ServerConfig(
        checkpoint_path="/m",
        host="127.0.0.1",
        max_body_bytes=2_000_000,
        concurrency_limit=7,
        auto_truncate=False,
        default_prompt_name="query",
        log_level="debug",
    )
