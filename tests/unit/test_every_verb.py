"""What holds for every verb of the command line, whatever it does: a new one is in here as soon as it is registered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import msgspec
import pytest
import typer
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli import service as service_module
from dspool.cli.run_file import RunFile, this_process

run = CliRunner().invoke

NEED_NO_SERVICE = {
    "up": "is the service",
    "dev": "is the service",
    "down": "nothing to stop is fine",
    "config": "reads files",
    "version": "reads files",
    "new": "writes files",
    "doctor": "tells what is wrong, also without one",
    "trace": "reads files",
    "preflight": "is for what does not run yet",
    "where": "reads files",
    "token new": "writes a file",
    "token list": "reads a file",
    "token revoke": "writes a file",
    "store backup": "reads a database",
    "store restore": "writes a database that nobody serves",
    "store migrate": "writes a database that nobody serves",
    "store check": "reads a database",
    "sizing simulate": "reads files",
}
HAVE_NO_POOL = {
    "down": "stops the service with all its pools",
    "config": "prints all keys, also those of no pool",
    "apply": "changes the service with all its pools",
    "upgrade": "upgrades the service with all its pools",
    "preflight": "looks at all pools of a file",
    "version": "is about packages",
    "new": "makes a project",
    "where": "is about files and directories",
    "token new": "a token is for the service",
    "token list": "a token is for the service",
    "token revoke": "a token is for the service",
    "store backup": "a database has all its pools",
    "store restore": "a database has all its pools",
    "store migrate": "a database has all its pools",
    "store check": "a database has all its pools",
}


def verbs_of(command: object, name: str = "") -> Iterator[tuple[str, object]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    for verb, one in (inner or {}).items():
        yield from verbs_of(one, f"{name} {verb}".strip())


VERBS = dict(verbs_of(typer.main.get_command(app)))
ASKING = sorted(VERBS.keys() - NEED_NO_SERVICE)


def options_of(verb: str) -> set[str]:
    return {option for parameter in VERBS[verb].params for option in parameter.opts}


def line_of(verb: str, *more: str) -> list[str]:
    """The shortest command line of the verb that can be parsed."""
    given = []
    for parameter in VERBS[verb].params:
        if parameter.required and parameter.param_type_name == "argument":
            given.append("1")
        elif parameter.required:
            given += [parameter.opts[0], "json:dumps"]
    return [*verb.split(), *given, *more]


@pytest.fixture
def where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ["--state-dir", str(tmp_path)]


@pytest.fixture
def without_the_pool(where, tmp_path, monkeypatch):
    """A running service that has not the pool it is asked for."""
    body = {
        "code": "unknown_pool",
        "detail": "there is no pool 'nope' here; there is: default",
        "status": 404,
    }
    answers = httpx.MockTransport(lambda request: httpx.Response(404, json=body))
    monkeypatch.setattr(service_module, "transport_of", lambda run: answers)
    RunFile(tmp_path).write(msgspec.structs.replace(this_process("default"), url="http://dspool"))
    return where


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself_in_80_columns_and_takes_json(verb):
    shown = run(app, [*verb.split(), "--help"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert "Usage: " in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "--json" in options_of(verb)


def test_each_verb_that_is_about_a_pool_takes_its_name():
    assert {verb for verb in VERBS if "--pool" not in options_of(verb)} == set(HAVE_NO_POOL)


@pytest.mark.parametrize("verb", ASKING)
def test_without_a_service_each_verb_says_in_one_sentence_how_to_start_one(verb, where, tmp_path):
    said = f"no service runs from {tmp_path}; start one with `dspool up`"
    ended = run(app, line_of(verb, *where))
    assert ended.exit_code == 3
    assert ended.output in (f"Error: {said}\n", f"{said}\n")
    as_json = run(app, line_of(verb, "--json", *where))
    assert as_json.exit_code == 3
    assert said in json.loads(as_json.output).values()


@pytest.mark.parametrize("verb", [*(verb for verb in ASKING if "--pool" in options_of(verb)), "doctor"])
def test_a_pool_that_the_service_does_not_have_is_refused(verb, without_the_pool):
    ended = run(app, line_of(verb, "--pool", "nope", *without_the_pool))
    said = "Error: there is no pool 'nope' here; there is: default\n"
    assert (ended.exit_code, ended.stdout, ended.stderr) == (2, "", said)
    as_json = run(app, line_of(verb, "--pool", "nope", "--json", *without_the_pool))
    assert (as_json.exit_code, json.loads(as_json.stderr)["code"]) == (2, "unknown_pool")


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_option_is_one_line_that_leads_to_the_help_and_json_for_programs(verb):
    ended = run(app, line_of(verb, "--jsn"))
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("Error: No such option: --jsn")
    assert ended.stderr.endswith(f"see `dspool {verb} --help`\n")
    assert json.loads(run(app, line_of(verb, "--jsn", "--json")).stderr)["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scale x", "N must be a whole number, got 'x'"),
        ("scale", "Missing argument 'N'"),
        ("logs --limit 0", "--limit must be at least 1, got '0'"),
        ("top --interval often", "--interval must be a number, got 'often'"),
        ("warm --strategy x", "--strategy: 'x' is not one of 'parallel', 'sequential', 'staged'"),
        ("scael 3", "No such command 'scael'"),
    ],
)
def test_a_value_that_does_not_fit_is_said_in_plain_words(line, said):
    ended = run(app, line.split())
    assert (ended.exit_code, ended.stderr.startswith(f"Error: {said}")) == (2, True), ended.stderr
    assert ended.stderr.count("\n") == 1


INTO_A_CLOSED_PIPE = """
import os, sys
from dspool import cli
for verb in sys.stdin.read().splitlines():
    read, write = os.pipe()
    os.close(read)
    if not (child := os.fork()):
        os.dup2(write, 1)
        sys.argv = ["dspool", *verb.split(), "--help"]
        sys.exit(cli.main())
    os.close(write)
    print(verb, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_reader_that_goes_away_ends_each_verb_quietly_as_a_shell_expects():
    # One process imports, and a fork of it is each verb: an import for each would be a minute.
    done = subprocess.run(
        [sys.executable, "-c", INTO_A_CLOSED_PIPE],
        input="\n".join(VERBS),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert dict(line.rsplit(" ", 1) for line in done.stdout.splitlines()) == dict.fromkeys(VERBS, "141")


def test_what_fails_while_nobody_reads_says_nothing_of_the_pipe(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dspool.cli", "config", "--json", "--state-dir", str(tmp_path)]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# --- what the shell asks ------------------------------------------------------------------------------


def completed(line: str, shell: str = "bash", **variables: str) -> list[str]:
    """What Tab offers at the end of `line`."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environ = {"_DSPOOL_COMPLETE": f"complete_{shell}", **asked, **variables}
    return run(app, [], prog_name="dspool", env=environ).stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_verbs_are_completed_in_each_shell_and_it_can_be_installed(shell, monkeypatch):
    assert any("status" in word for word in completed("dspool sta", shell))
    # Else it is the shell that the test was started from.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = run(app, ["--show-completion", shell], prog_name="dspool")
    assert "_DSPOOL_COMPLETE=complete_" in script.stdout


def test_names_of_pools_and_programs_are_completed_from_files_alone(tmp_path):
    file = tmp_path / "pool.yaml"
    file.write_text(
        f"name: support\nstate_dir: {tmp_path}\nprograms: {{triage: {{spec: {{signature: a -> b}}}}}}\n"
    )
    RunFile(tmp_path).write(msgspec.structs.replace(this_process("sales"), url="http://nowhere"))
    assert completed(f"dspool status --config {file} --pool s") == ["sales", "support"]
    assert completed(f"dspool deploy --config {file} tr") == ["triage"]
    assert completed("dspool status --config /nowhere.yaml --pool s") == []


def test_the_version_is_an_option_too():
    assert run(app, ["--version"]).stdout.startswith("dspool 0.")
