"""deploy/systemd: each command is one that dspool or the installed Ray takes, and so are its variables."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

import pytest
import typer
from ray.scripts import scripts as ray_scripts

from dspool.cli import app
from dspool.config import load_config

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
FILES = sorted(path.name for path in UNITS.glob("*.service"))


class Repeated(dict):
    """A key may stand several times in a unit."""

    def __setitem__(self, key, value):
        if isinstance(value, list) and isinstance(self.get(key), list):
            value = [*self[key], *value]
        super().__setitem__(key, value)


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, dict_type=Repeated, empty_lines_in_values=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNITS / name)
    return parser


def all_of(name: str, key: str) -> list[str]:
    return unit(name)["Service"].get(key, "").split("\n")


def commands(name: str) -> list[list[str]]:
    found = [*all_of(name, "ExecStart"), *all_of(name, "ExecReload")]
    return [shlex.split(one) for one in found if one]


@pytest.mark.parametrize("name", FILES)
def test_each_command_is_taken_as_it_stands(name):
    assert commands(name)
    for program, verb, *options in commands(name):
        assert Path(program).parent == Path("/opt/dspool/bin")
        all_verbs = {"dspool": typer.main.get_command(app), "ray": ray_scripts.cli}[Path(program).name]
        verbs = all_verbs.commands  # type: ignore[attr-defined]
        # Raises for an option that there is not; runs nothing.
        verbs[verb].make_context(verb, options)


@pytest.mark.parametrize("name", FILES)
def test_the_units_that_one_needs_are_there(name):
    section = unit(name)["Unit"]
    wanted = {one for key in ("Requires", "Wants", "After") for one in section.get(key, "").split()}
    assert {one for one in wanted if one.startswith("dspool")} <= set(FILES)
    for one in section.get("Requires", "").split():
        assert one in section["After"].split()


@pytest.mark.parametrize("name", [name for name in FILES if "ray" not in name])
def test_what_the_service_finds_in_its_environment_is_taken(name, tmp_path):
    variables = dict(one.split("=", 1) for one in all_of(name, "Environment"))
    (tmp_path / "pool.yaml").write_text("pool_size: 3\n")
    config = load_config(environ={**variables, "DSPOOL_CONFIG": str(tmp_path / "pool.yaml")}).config
    assert (config.pool_size, str(config.state_dir)) == (3, "/var/lib/dspool")
    assert unit(name)["Service"]["StateDirectory"] == "dspool"


@pytest.mark.parametrize("name", [name for name in FILES if name != "dspool.service"])
def test_the_machines_of_a_cluster_have_one_environment_and_ask_for_a_token(name):
    assert "/etc/dspool/ray.env" in all_of(name, "EnvironmentFile")
    lines = (UNITS / "ray.env.example").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert variables["RAY_AUTH_MODE"] == "token"
