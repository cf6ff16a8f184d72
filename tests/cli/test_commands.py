"""The subcommands: what they print, and one line with the right exit status for what goes wrong."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.cli import COMMANDS
from rtp_llm.flags import parse_serve
from tests.cli.conftest import FAST, Shell
from tests.real_server import ROOT
from tests.tasks.checkpoints import save
from tests.verify.test_verify import spoil

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_embed_to_json_lines(shell: Shell, m3: Path) -> None:
    done = shell("embed", m3, "-", "-", "--output", "dense,sparse,colbert", *FAST, stdin=b"the\n\nso today\r\n")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.status == 0 and [row["index"] for row in rows] == [0, 1, 2]
    assert len(rows[0]["dense"]) == 32 and [len(row["colbert"]) for row in rows] == [2, 1, 3]
    assert all(len(row["sparse"]["tokens"]) == len(row["sparse"]["values"]) for row in rows)
    alone = shell("embed", m3, "-", "-", *FAST, stdin=b"so today")
    assert json.loads(alone.out)["dense"] == rows[2]["dense"]


def test_embed_the_largest_weights(shell: Shell, m3: Path) -> None:
    options = ("--output", "sparse", "--prompt_name", "query", *FAST)
    text = b"so sunny outside today"
    whole, cut = (
        shell("embed", m3, "-", "-", *more, *options, stdin=text) for more in ((), ("--max_active_dims", "2"))
    )
    weights, kept = (json.loads(done.out)["sparse"] for done in (whole, cut))
    assert len(weights["values"]) > 2 and kept["values"] == [
        weight for weight in weights["values"] if weight >= sorted(weights["values"])[-2]
    ]


@pytest.mark.parametrize(
    ("content", "shape"), [(b"", (0, 8)), (b"\n", (1, 8)), ("\ufeffso\nsunny\x0cthe".encode(), (2, 8))]
)
def test_embed_to_a_matrix(content: bytes, shape: tuple[int, int], shell: Shell, m3: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_bytes(content)
    done = shell("embed", m3, tmp_path / "texts", tmp_path / "out.npy", "--dimensions", 8, *FAST)
    assert done.status == 0, done.err
    assert np.load(tmp_path / "out.npy").shape == shape


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
@pytest.mark.parametrize("wrong", [("--prompt_name", "none such"), ("--dimensions", "10000")])
def test_a_failure_leaves_the_file_that_was_there(
    name: str, wrong: tuple[str, str], shell: Shell, m3: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("an hour's work")
    assert shell("embed", m3, "-", tmp_path / name, *wrong, *FAST, stdin=b"so").status in (1, 2)
    assert (tmp_path / name).read_text() == "an hour's work" and len([*tmp_path.iterdir()]) == 1


def test_a_written_file_takes_the_place_of_another(shell: Shell, m3: Path, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("old")
    (tmp_path / "old.jsonl").chmod(0o640)
    (tmp_path / "link.jsonl").symlink_to("old.jsonl")
    assert shell("embed", m3, "-", tmp_path / "link.jsonl", *FAST, stdin=b"so").status == 0
    assert (tmp_path / "link.jsonl").is_symlink() and (tmp_path / "old.jsonl").stat().st_mode & 0o777 == 0o640
    assert json.loads((tmp_path / "old.jsonl").read_text())["index"] == 0
    done = shell("embed", m3, "-", tmp_path, *FAST, stdin=b"so")
    assert done.status == 1 and "Is a directory" in done.err and "Traceback" not in done.err
    assert shell("embed", m3, "-", "/dev/null", *FAST, stdin=b"so").status == 0


def test_rerank(shell: Shell, reranker: Path, tmp_path: Path) -> None:
    (tmp_path / "documents").write_text("the weather\nis\tlovely\nso sunny\n")
    done = shell("rerank", reranker, "the query", "--top-k", 2, tmp_path / "documents", *FAST)
    lines = [line.split("\t", 2) for line in done.out.splitlines()]
    assert [line[0] for line in lines] == ["1", "2"] and float(lines[0][1]) >= float(lines[1][1])
    read = shell("rerank", reranker, "the query", "--json", *FAST, stdin=b"the weather\nis\tlovely\nso sunny")
    rows = [json.loads(line) for line in read.out.splitlines()]
    assert [row["document"] for row in rows][:2] == [line[2] for line in lines]
    assert sorted(row["index"] for row in rows) == [0, 1, 2]
    assert shell("rerank", reranker, "the query", *FAST) == (0, "", "")


def test_classify(shell: Shell, classifier: Path) -> None:
    done = shell("classify", classifier, *FAST, stdin=b"the weather\nso sunny\n")
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [line[2] for line in lines] == ["the weather", "so sunny"]
    assert all(line[0] in ("bad", "good", "so-so") and 0 < float(line[1]) < 1 for line in lines)
    pairs = shell("classify", classifier, "--pairs", "--json", *FAST, stdin=b"the\tweather\n")
    labels = json.loads(pairs.out)["labels"]
    assert [entry["score"] for entry in labels] == sorted((entry["score"] for entry in labels), reverse=True)
    assert sum(entry["score"] for entry in labels) == pytest.approx(1)


def test_classify_tokens(shell: Shell, tagger: Path) -> None:
    done = shell("classify", tagger, "--ignore-labels", "", *FAST, stdin=b"the weather\n\nso sunny\n")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert done.status == 0 and {row[0] for row in rows} == {"0", "2"} and all(len(row) == 6 for row in rows)
    assert all(["", "O", "PER"].index(row[3]) and 0 < float(row[4]) <= 1 for row in rows)
    read = shell("classify", tagger, "--aggregation_strategy", "none", "--json", *FAST, stdin=b"the weather\n")
    (answer,) = map(json.loads, read.out.splitlines())
    assert answer["text"] == "the weather"
    assert all(sorted(entity) == ["end", "entity", "index", "score", "start", "word"] for entity in answer["entities"])
    wrong = shell("classify", tagger, "--activation", "none", *FAST, stdin=b"the")
    assert wrong.status == 2 and "activation: this checkpoint labels tokens" in wrong.err


def test_classify_texts_as_tokens(shell: Shell, classifier: Path) -> None:
    wrong = shell("classify", classifier, "--aggregation_strategy", "max", *FAST, stdin=b"the")
    assert wrong.status == 2 and "aggregation_strategy: this checkpoint labels texts" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["embed", "{m3}", "/no/file", "-"], 1, "rtp-llm embed: /no/file: No such file or directory"),
        (["embed", "{m3}", "-", "/no/folder/x.npy"], 1, "/no/folder/x.npy: No such file"),
        (["embed", "{m3}", "-", "x.npy", "--output", "sparse"], 2, "an .npy file holds dense vectors"),
        (["embed", "{m3}", __file__, __file__], 2, "the file of the texts: name another"),
        (
            ["embed", "{m3}", "-", "{m3}/x.npy", "--task_type", "SPARSE_EMBEDDING"],
            2,
            "output: an .npy file holds dense vectors; name it .jsonl for sparse",
        ),
        (["embed", "{m3}", "-", "-", "--output", "dens"], 2, "'dens' is not one of dense, sparse"),
        (
            ["embed", "{m3}", "-", "-", "--output", "sparse", "--task_type", "DENSE_EMBEDDING"],
            2,
            "this model offers dense, tokens, not sparse",
        ),
        (["embed", "{m3}", "-", "-", "--dimensions", "99"], 2, "dimensions: 99 is not between 1 and 32"),
        (["embed", "{m3}", "-", "-", "--max_active_dims", "3"], 2, "3 is of sparse vectors; --output sparse asks"),
        (["embed", "{m3}", "-", "-", "--output", "sparse", "--max_active_dims", "0"], 2, "0 is not at least 1"),
        (["embed", "{m3}", "-", "-", "--prompt_name", "x"], 2, "prompt_name 'x' is not a prompt"),
        (["embed", "{m3}", "-"], 2, "the following arguments are required: VECTORS"),
        (["embed", "/no/model", "-", "-"], 1, "/no/model"),
        (["embed", "{m3}", "-", "-", "--max_seq_len", "9999"], 2, "64 positions"),
        (["rerank", "{m3}", "query", "--task_type", "SPARSE_EMBEDDING"], 1, "this model offers sparse, not rerank"),
        (["rerank", "{m3}", "query", "--topk", "1"], 2, "did you mean --top_k?"),
        (["rerank", "{m3}", "query", "--top_k", "0"], 2, "top_k: 0 is below the least allowed, 1"),
        (["rerank", "{m3}", "query", "-", "--port", "1"], 2, "--port is an option of the server"),
        (
            ["embed", "{m3}", "-", "-", "--max_client_batch_size", "1"],
            2,
            "--max_client_batch_size is an option of the server",
        ),
        (["classify", "{m3}", "--pairs"], 1, "line 1 has no tab"),
        (["verify"], 2, "checkpoint_path is missing"),
        (["verify", "{m3}", "--bound", "0"], 2, "bound: 0 is not above 0"),
        (["verify", "/no/model"], 1, "/no/model"),
    ],
)
def test_what_goes_wrong_is_one_line(
    arguments: list[str], status: int, message: str, shell: Shell, m3: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = shell(*(argument.format(m3=m3) for argument in arguments), stdin=b"the weather")
    assert done.status == status and message in done.err, done
    assert len(done.err.splitlines()) <= 2 and not done.out


def test_bytes_that_are_not_utf8(shell: Shell, m3: Path) -> None:
    done = shell("embed", m3, "-", "-", stdin=b"the\nso \xff\n")
    assert done.status == 1 and "standard input: line 2 is not UTF-8 (byte 0xff)" in done.err


@pytest.mark.parametrize(
    ("arguments", "ends"),
    [("- - <&-", "standard input is closed; name a file"), ("/dev/null - >&-", ""), ("{texts} - >&-", "is closed")],
)
def test_a_stream_that_is_closed_is_told_in_a_line(arguments: str, ends: str, m3: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("so sunny")
    command = f"{sys.executable} -m rtp_llm embed {m3} {arguments} {' '.join(FAST)}"
    done = subprocess.run(
        ["sh", "-c", command.format(texts=tmp_path / "texts")], stderr=subprocess.PIPE, cwd=ROOT, text=True, timeout=60
    )
    assert done.returncode == (1 if ends else 0) and done.stderr.rstrip().endswith(ends), done
    assert len(done.stderr.splitlines()) <= 1


def test_what_is_printed_is_utf8_whatever_the_terminal_takes(classifier: Path) -> None:
    command = [sys.executable, "-m", "rtp_llm", "classify", str(classifier), *FAST]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, input="é".encode(), capture_output=True, cwd=ROOT, env=environ, timeout=60)
    assert done.returncode == 0 and done.stdout.decode().endswith("\té\n"), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_the_engines_options(command: str, shell: Shell) -> None:
    done = shell(command, "--help")
    assert done.status == 0 and "--num_threads" in done.out and "CHECKPOINT" in done.out


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "serve"])
def test_the_example_of_the_help_works(
    name: str, shell: Shell, tiny_bert: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, rest = shell(name, "--help").out.partition("\nexample:\n")
    example = rest.strip().splitlines()[0]
    hub_id = next(word for word in example.split() if "/" in word)
    folder = classifier if name == "classify" else tiny_bert
    texts, _, command = example.replace(hub_id, str(folder)).replace("128", "20").rpartition(" | ")
    stdin = subprocess.run(["sh", "-c", texts], stdout=subprocess.PIPE, check=True).stdout
    monkeypatch.chdir(tmp_path)
    done = shell(*shlex.split(command)[1:], *FAST, stdin=stdin)
    assert done.status == 0 and not done.err, done.err
    assert done.out or (tmp_path / "vectors.npy").exists()


def test_the_example_of_serves_help_is_parsed(shell: Shell) -> None:
    _, _, rest = shell("serve", "--help").out.partition("\nexample:\n  rtp-llm serve ")
    config, _ = parse_serve(rest.splitlines()[0].split(), {})
    assert config.start_port == 8088


def test_the_query_may_look_like_a_flag(shell: Shell, reranker: Path) -> None:
    done = shell("rerank", reranker, "--What is lovely?", "--JSON", *FAST, stdin=b"the\n")
    assert done.status == 0 and json.loads(done.out)["rank"] == 1


def test_verify_prints_a_table_and_its_verdict_is_the_status(shell: Shell, tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("the weather\nso sunny\n")
    options = ("--texts", tmp_path / "texts", *FAST)
    good = shell("verify", tiny_bert, *options)
    assert good.status == 0 and good.out.splitlines()[-1].startswith("EQUAL: 2 answers from the same tokens")
    spoilt = spoil(tiny_bert, "encoder.layer.1.output.dense.weight", tmp_path / "spoilt")
    bad = shell("verify", spoilt, "--reference", tiny_bert, *options)
    assert bad.status == 1 and "DIFFERS: 2 of 2 answers, most dense of" in bad.out
    assert shell("verify", spoilt, "--reference", tiny_bert, "--bound", 10, *options).status == 0
    report = json.loads(shell("verify", spoilt, "--reference", tiny_bert, "--json", *options).out)
    assert report["verdict"] == "differs" and len(report["rows"]) == 2
    assert max(row["max_abs"] for row in report["rows"]) > 1e-3


def test_verify_of_no_texts_and_of_a_torn_file(shell: Shell, reranker: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("")
    assert "is empty; give at least one text" in shell("verify", reranker, "--texts", tmp_path / "texts").err
    (tmp_path / "texts").write_text("a single text\n")
    done = shell("verify", reranker, "--texts", tmp_path / "texts", *FAST)
    assert done.status == 1 and "line 1 has no tab" in done.err
    save(tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    shell("--version")
    done = shell("verify", tmp_path / "torn", *FAST)
    assert done.status == 1 and "model.safetensors" in done.err and len(done.err.splitlines()) == 1
