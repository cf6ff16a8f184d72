"""Every alert fires on what it is for, whatever the scrape job is called, and no other program sets one off."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.files import read_yaml, rules

FIRING = Path(__file__).with_name("alerts.yml")


@pytest.mark.skipif(not shutil.which("promtool"), reason="Prometheus is not installed (apt install prometheus)")
def test_alerts_fire_where_they_should(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    (document,) = read_yaml("prometheus/rules.yml")
    for rule in document["groups"][0]["rules"]:
        assert set(rule.pop("annotations")) == {"summary", "action"}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(document))
    shutil.copy(FIRING, tmp_path)
    done = subprocess.run(["promtool", "test", "rules", "alerts.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_its_case() -> None:
    yaml = pytest.importorskip("yaml")
    cases = [case for test in yaml.safe_load(FIRING.read_text())["tests"] for case in test.get("alert_rule_test", ())]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(rules())


def test_no_rule_hangs_on_the_name_of_a_job() -> None:
    assert not [name for name, expression in rules().items() if "job=" in expression]
