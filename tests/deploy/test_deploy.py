"""The deployment files fit the code: options, probes, metrics and files that exist, times that add up."""

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.flags import parse_serve
from rtp_llm.observability.page import described
from rtp_llm.option import environment_name
from rtp_llm.server.rtp import HEALTH_PATHS, LIVENESS_PATHS
from tests.deploy.files import DEPLOY, metric_names, panels, read_yaml, rules
from tests.real_server import ROOT

OPTIONS = {environment_name(spec) for spec in fields(ServerConfig)}
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
EXPOSED = {f"{one.name}{suffix}" for one in described() for suffix in SUFFIXES[one.kind]}


def deployment() -> Any:
    return next(part for part in read_yaml("kubernetes/rtp-llm.yaml") if part["kind"] == "Deployment")


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    used = {name for _, expression in [*rules().items(), *panels()] for name in metric_names(expression)}
    assert len(used) > 20 and not used - EXPOSED


def test_the_dashboard_shows_every_metric() -> None:
    """But for what another panel tells in other words."""
    shown = {name for _, expression in panels() for name in metric_names(expression)}
    unseen = [one.name for one in described() if not any(name.startswith(one.name) for name in shown)]
    assert set(unseen) <= {"rtp_llm_queued_inputs", "rtp_llm_cache_entries"}


def test_kubernetes_probes_and_options() -> None:
    pod = deployment()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] in HEALTH_PATHS
    assert container["livenessProbe"]["httpGet"]["path"] in LIVENESS_PATHS
    environ = {one["name"]: one["value"] for one in container["env"]}
    assert set(environ) <= OPTIONS
    config, _ = parse_serve(container["args"], environ)
    assert pod["terminationGracePeriodSeconds"] > config.drain_seconds + config.shutdown_timeout
    ready = container["readinessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] + ready["timeoutSeconds"] < config.drain_seconds


def test_kubernetes_names_agree() -> None:
    parts = {part["kind"]: part for part in read_yaml("kubernetes/rtp-llm.yaml")}
    labels = parts["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert parts["Service"]["spec"]["selector"] == parts["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert parts["Service"]["spec"]["selector"] == labels == parts["Deployment"]["spec"]["selector"]["matchLabels"]
    assert parts["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == parts["Deployment"]["metadata"]["name"]
    named = {port["name"] for port in parts["Deployment"]["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert parts["Service"]["spec"]["ports"][0]["targetPort"] in named


def test_compose() -> None:
    (document,) = read_yaml("compose.yaml")
    service = document["services"]["rtp-llm"]
    config, _ = parse_serve(service["command"], {})
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert int(service["stop_grace_period"].rstrip("s")) > 5 + config.shutdown_timeout
    mounts = [volume.split(":")[0] for one in document["services"].values() for volume in one["volumes"]]
    assert not [mount for mount in mounts if mount.startswith("./") and not (DEPLOY / mount).exists()]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_built_from_what_the_context_has(name: str) -> None:
    text = (DEPLOY / name).read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [source for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M) for source in line.split()[:-1]]
    assert copied and all((ROOT / source).exists() and f"!{source}" in ignored for source in copied)
    extras = re.search(r"'\.\[(.+)\]'", text)
    declared = (ROOT / "pyproject.toml").read_text()
    assert extras is not None and all(f"\n{extra} = [" in declared for extra in extras[1].split(","))
    own = set(re.findall(r"^ +([A-Z_]+)=", text, re.M)) - {"PYTHONUNBUFFERED", "HF_HOME"}
    assert not {one for one in own if not one.startswith("NVIDIA")} - OPTIONS


def test_systemd() -> None:
    text = (DEPLOY / "rtp-llm.service").read_text()
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    environ = dict(one.split("=") for one in settings["Environment"].split())
    assert set(environ) - {"HF_HOME"} <= OPTIONS
    config, _ = parse_serve(["x"], environ)
    assert int(settings["TimeoutStopSec"]) > config.drain_seconds + config.shutdown_timeout > config.shutdown_timeout
    assert settings["RestartPreventExitStatus"] == "2" and settings["ExecReload"].endswith("-HUP $MAINPID")
    assert config.log_format == "json"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "rtp-llm.service").read_text().replace("/opt/rtp_llm/bin/rtp-llm", "/bin/true")
    (tmp_path / "rtp-llm.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "rtp-llm.service")], capture_output=True, text=True, check=False
    )
    assert "rtp-llm.service" not in done.stderr, done.stderr
