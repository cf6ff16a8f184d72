"""Where texts come from: lines, JSON lines and tables, and what is said of a file that is none of these."""

import json
from pathlib import Path

import numpy as np
import pytest

from rtp_llm.cli.texts import read_columns, read_texts
from rtp_llm.errors import InvalidRequest
from tests.cli.conftest import FAST, Shell

pytest.importorskip("torch")
pytest.importorskip("transformers")

TEXTS = ["so sunny", 'he "drove",\nto stadium', "", "the\tweather"]
FILES = {
    "a.jsonl": "".join(json.dumps({"id": i, "text": text}) + "\n\n" for i, text in enumerate(TEXTS)),
    "b.ndjson": "".join(json.dumps(text) + "\r\n" for text in TEXTS),
    "c.csv": 'id,text\r\n0,so sunny\r\n1,"he ""drove"",\nto stadium"\r\n2,\r\n3,the\tweather\r\n',
    "D.TSV": '\ufeffid\ttext\n0\tso sunny\n1\t"he ""drove"",\nto stadium"\n2\t\n\n3\t"the\tweather"\n',
}


@pytest.mark.parametrize("name", FILES)
def test_a_column_of_a_table(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name].encode())
    assert read_texts(str(tmp_path / name), None) == TEXTS
    if name != "b.ndjson":
        (tmp_path / name).write_bytes(FILES[name].replace("text", "body").encode())
        assert read_texts(str(tmp_path / name), "body") == TEXTS


def test_a_text_longer_than_csv_reads_by_default(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text("text\n" + "so " * 100_000 + "\n")
    assert read_texts(str(tmp_path / "long.csv"), None) == ["so " * 100_000]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "so"}\n{"body": "so"}\n', "line 2 has no 'text', but 'body'; --column names another"),
        ("a.jsonl", '\n{"text": 3}\n', "line 2: 'text' is 3; a text is needed"),
        ("a.jsonl", '{"text": "so"\n', "line 1 is not JSON: "),
        ("a.jsonl", "[1]\n", "line 1 has no 'text', but list"),
        ("a.csv", "id,body\n1,so\n", "line 1 has no 'text', but 'id', 'body'; --column names another"),
        ("a.csv", "id,text\n1,so\n2\n", "line 3: 'text' is missing; a text is needed"),
        ("a.csv", 'id,text\n1,"so" sunny\n', "line 2: ',' expected after '\"'"),
        ("a.csv", "id,text\n1,so \udcff\n", "line 2 is not UTF-8 (byte 0xff)"),
        ("a.csv", "id,text\n1,so\n2,so, sunny, oh\n", "line 3 has 4 cells and the first row 2; put a text with a co"),
        ("a.tsv", "text\nso\tsunny\n", "line 2 has 2 cells and the first row 1; put a text with a tab in quotes"),
        ("a.csv", "text,id,text\nso,1,sunny\n", "the first row has 2 columns 'text'; rename them"),
        ("lines", "\ufeffso\n\udcff\n", "line 2 is not UTF-8 (byte 0xff)"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidRequest) as error:
        read_texts(str(tmp_path / name), None)
    assert error.value.message.startswith(f"{tmp_path / name}: ") and message in error.value.message


def test_what_is_no_row_and_what_is_not_read(tmp_path: Path) -> None:
    """A blank line is no row, quotes without a word are an empty text; what is not read may have one name, or none."""
    (tmp_path / "a.csv").write_text('text,,\n\nso,1,2\n"",,\n\n\nsunny,3,4,,\n')
    assert read_texts(str(tmp_path / "a.csv"), None) == ["so", "", "sunny"]
    (tmp_path / "b.csv").write_text('text\nso\n\n""\n')
    assert read_texts(str(tmp_path / "b.csv"), None) == ["so", ""]


def test_pairs_are_two_columns(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("left,right\nso,sunny\n")
    assert read_columns(str(tmp_path / "pairs.csv"), ["right", "left"]) == [("sunny", "so")]
    (tmp_path / "pairs.jsonl").write_text('"so"\n')
    with pytest.raises(InvalidRequest, match="line 1 has no 'left', but str"):
        read_columns(str(tmp_path / "pairs.jsonl"), ["left", "right"])


def test_commands_read_tables(shell: Shell, m3: Path, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text(FILES["c.csv"])
    (tmp_path / "pairs.jsonl").write_text('{"text": "so", "text_pair": "sunny"}\n')
    assert shell("embed", m3, tmp_path / "texts.csv", tmp_path / "out.npy", *FAST).status == 0
    assert np.load(tmp_path / "out.npy").shape == (4, 32)
    ranked = shell("rerank", m3, "so sunny", tmp_path / "texts.csv", "--column", "id", *FAST)
    assert sorted(line.split("\t")[2] for line in ranked.out.splitlines()) == ["0", "1", "2", "3"]
    labels = shell("classify", classifier, tmp_path / "texts.csv", *FAST).out.splitlines()
    assert len(labels) == 4 and labels[1].endswith('\the "drove", to stadium')
    pairs = shell("classify", classifier, tmp_path / "pairs.jsonl", "--pairs", "--json", *FAST)
    assert json.loads(pairs.out)["text"] == "so\tsunny"
    lines = shell("classify", classifier, "--pairs", "--json", *FAST, stdin=b"so\tsunny")
    assert lines.out == pairs.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--column", "body"), "column: 'body' is of .jsonl, .csv and .tsv files"),
        (("--column", "a,b", "--pairs"), "column: 'a,b' is of .jsonl, .csv and .tsv files"),
        (("{csv}", "--column", "text", "--pairs"), "column: 'text' is not two names with a comma between"),
    ],
)
def test_a_column_that_means_nothing(
    arguments: tuple[str, ...], message: str, shell: Shell, classifier: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.csv").write_text(FILES["c.csv"])
    told = [argument.format(csv=tmp_path / "texts.csv") for argument in arguments]
    done = shell("classify", classifier, *told, *FAST, stdin=b"so")
    assert done.status == 2 and message in done.err and not done.out


def test_a_table_without_rows_has_the_column_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("foo,text\n")
    assert [*read_columns(str(tmp_path / "texts.csv"), ["text"])] == []
    with pytest.raises(InvalidRequest, match="texts.csv: line 1 has no 'passage', but 'foo', 'text'; --column names"):
        [*read_columns(str(tmp_path / "texts.csv"), ["passage"])]
