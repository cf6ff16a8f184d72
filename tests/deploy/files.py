"""What the deployment files say, for the tests that hold them to the code."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real_server import ROOT

DEPLOY = ROOT / "deploy"
# What Grafana would put in; the interval is that of the tests' scrapes.
VARIABLES = {"$job": "rtp-llm", "$instance": ".*", "$__rate_interval": "10s"}


def read_yaml(path: str) -> list[Any]:
    """All documents of a file below deploy/."""
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def rules() -> dict[str, str]:
    """Expression by alert."""
    (document,) = read_yaml("prometheus/rules.yml")
    return {rule["alert"]: rule["expr"] for group in document["groups"] for rule in group["rules"]}


def panels() -> Iterator[tuple[str, str]]:
    """Title and expression of each target of the dashboard, with its variables filled in."""
    for panel in json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            yield panel["title"], expression


def metric_names(expression: str) -> set[str]:
    return set(re.findall(r"\brtp_llm_\w+", expression))
