import json
from pathlib import Path

import pytest

from benchmarks import disk, report, server_process


def test_table_aligns() -> None:
    assert report.table(("name", "n"), [["a", "10"], ["long name", "2"]]).splitlines() == [
        "name        n",
        "---------  --",
        "a          10",
        "long name   2",
    ]


def test_the_last_line_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.finish({"ratio": 1.5}, str(tmp_path / "result.json"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"ratio": 1.5}
    assert json.loads((tmp_path / "result.json").read_text()) == {"ratio": 1.5}


def test_machine_is_described() -> None:
    assert f"{report.machine()['cores']} cores" in report.describe(report.machine())


def test_disk_bytes_counts_a_folder(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/file").write_bytes(b"x" * 10_000)
    assert disk.disk_bytes(tmp_path) >= 10_000


@pytest.mark.parametrize(("texts", "sent"), [(["one"], "one"), (["one", "two"], ["one", "two"])])
def test_body_is_what_openai_sends(texts: list[str], sent: object) -> None:
    assert json.loads(server_process.body(texts)) == {"input": sent, "encoding_format": "base64"}
