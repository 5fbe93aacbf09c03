"""`dspool apply` does what was planned for the service as it is, or nothing."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from dspool.cli import actions, app
from dspool.cli import apply as cli_apply
from dspool.cli import upgrade as cli_upgrade
from dspool.errors import Conflict
from dspool_serve.ingress import applying
from dspool_serve.ingress.applying import Plan


@pytest.mark.parametrize("content", [None, "", " \n", "# pool_size: 3\n"])
def test_without_a_file_that_says_something_nothing_becomes_the_defaults(tmp_path, monkeypatch, content):
    monkeypatch.delenv("DSPOOL_CONFIG", raising=False)
    run = SimpleNamespace(development=False, flags={})
    monkeypatch.setattr(cli_apply, "running", lambda run_file: run)
    words = ["apply", "--dry-run", "--state-dir", str(tmp_path)]
    if content is not None:
        (tmp_path / "pool.yaml").write_text(content)
        words += ["-f", str(tmp_path / "pool.yaml")]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 2
    assert "dspool apply -f" in ended.output


def test_a_file_that_only_names_its_pools_says_something(tmp_path):
    (tmp_path / "pool.yaml").write_text("pools: {a: {}, b: {}}\n")
    wanted = cli_apply.wanted_of(SimpleNamespace(flags={}), tmp_path / "pool.yaml")
    assert [one.name for one in wanted] == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["apply", "-f", "pool.yaml"], cli_apply.CUT_OFF),
        (["upgrade"], cli_upgrade.CUT_OFF),
        (["restart", "--rolling"], actions.CUT_OFF),
    ],
)
def test_ctrl_c_says_how_things_stand(tmp_path, monkeypatch, words, told):
    def interrupted(*_):
        raise KeyboardInterrupt

    for command in (cli_apply, cli_upgrade, actions):
        monkeypatch.setattr(command, "running", interrupted)
    monkeypatch.setattr(actions, "serving", lambda *_: nullcontext(SimpleNamespace(status=lambda: None)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.yaml").write_text("pool_size: 3\n")
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 130
    assert json.loads(ended.stderr)["message"] == f"interrupted: {told}"


RECORD = SimpleNamespace(installation="0.2.0", upgrade=None)
PLANNED = Plan(pools=[], new_ingress=False)


@pytest.mark.parametrize(
    ("now", "plan"),
    [
        (RECORD, Plan(pools=[], new_ingress=True)),
        (SimpleNamespace(installation="0.3.0", upgrade=None), PLANNED),
        (SimpleNamespace(installation="0.2.0", upgrade="0.3.0"), PLANNED),
        (None, PLANNED),
    ],
)
async def test_what_another_command_changed_since_is_not_undone(monkeypatch, now, plan):
    async def planned(*args, **options):
        return plan

    monkeypatch.setattr(applying, "plan", planned)
    monkeypatch.setattr(applying.service_record, "read", lambda: now)
    with pytest.raises(Conflict, match="nothing was changed by this one"):
        await applying._as_planned(RECORD, PLANNED, [])
    monkeypatch.setattr(applying.service_record, "read", lambda: RECORD)
    plan = PLANNED
    assert await applying._as_planned(RECORD, PLANNED, []) is RECORD
