"""Tokens: made once, kept as hashes, recognised in constant time, read again when the file changes."""

from __future__ import annotations

import json
import os

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from dspool import tokens
from dspool.cli import app
from dspool.core.admission.access import Token, Tokens, allowed, digest, new_token
from dspool.errors import ConfigError
from dspool.tokens import TokenSource, issue, parse, read, revoke

SECRET = "A" * 43


def test_a_token_is_recognised_and_another_is_not():
    text, token = new_token("ada", "caller", SECRET, "0123abcd")
    kept = Tokens([token])
    assert kept.recognise(text.encode(), now=0.0) is token
    for wrong in (text[:-1] + "B", text[:-1], text + "x", "dsp_deadbeef_" + SECRET, "", "x", "dsp__"):
        assert kept.recognise(wrong.encode(), now=0.0) is None
    assert kept.recognise(b"\xff" * 70, now=0.0) is None
    assert kept.recognise(token.sha256.encode(), now=0.0) is None, "the hash is not a token"


def test_every_try_costs_one_comparison_of_hashes_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(
        "dspool.core.admission.access.hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b
    )
    text, token = new_token("ada", "caller", SECRET, "0123abcd")
    kept = Tokens([token])
    for presented in (text, text[:-1] + "B", "dsp_deadbeef_" + SECRET, "nonsense"):
        compared.clear()
        kept.recognise(presented.encode(), now=0.0)
        assert [len(b) for _, b in compared] == [64]
        assert compared[0][0] == digest(presented.encode())


def test_an_expired_token_is_nobodys():
    text, token = new_token("ada", "caller", SECRET, "0123abcd", expires_at=100.0)
    kept = Tokens([token])
    assert kept.recognise(text.encode(), now=99.9) is token
    assert kept.recognise(text.encode(), now=100.0) is None


def test_each_role_may_do_what_those_before_it_may():
    order = ["reader", "caller", "admin"]
    for has in order:
        assert [allowed(has, need) for need in order] == [
            order.index(need) <= order.index(has) for need in order
        ]


def test_the_file_holds_no_token_and_only_its_owner_can_read_it(tmp_path):
    file = tmp_path / "state" / "tokens.yaml"
    text, token = issue(file, "ada", "admin")
    second, _ = issue(file, "bob", "caller", days=1, now=lambda: 0.0)
    assert file.stat().st_mode & 0o777 == 0o600
    assert text.rpartition("_")[2] not in file.read_text()
    assert [one.name for one in read(file)] == ["ada", "bob"]
    assert read(file)[1].expires_at == 86_400.0
    assert text != second
    assert Tokens(read(file)).recognise(text.encode(), now=0.0) == token
    assert os.listdir(file.parent) == ["tokens.yaml"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_open_is_refused(tmp_path, mode):
    file = tmp_path / "tokens.yaml"
    issue(file, "ada", "admin")
    file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        TokenSource(file)


@pytest.mark.parametrize(
    "text",
    [
        "tokens: 5",
        "tokens: [{name: ada}]",
        "{",
        "tokens: [{id: 0123abcd, name: a/b, role: caller, sha256: %s}]" % ("0" * 64),
        "tokens: [{id: 0123abcd, name: ada, role: root, sha256: %s}]" % ("0" * 64),
        "tokens: [{id: 0123abcd, name: ada, role: caller, sha256: short}]",
        "tokens: [{id: 0123abcd, name: ada, role: caller, sha256: %s, colour: red}]" % ("0" * 64),
        "!!python/object/apply:os.system ['true']",
    ],
)
def test_a_file_that_does_not_say_what_it_should_is_refused(text):
    with pytest.raises(ConfigError):
        parse(text, "tokens.yaml")


GOOD = {"id": "0123abcd", "name": "ada", "role": "caller", "sha256": "0" * 64}
HIDDEN = "hunter2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HIDDEN, "DSPOOL_TOKENS: it is text, not a mapping or a list; tokens are a mapping"),
        (f"dsp_0123abcd_{HIDDEN}", "a token itself or a path does not belong there"),
        ("5", "it is a number"),
        (f"{{{HIDDEN}: 1}}", "it has keys besides `tokens`"),
        (json.dumps({"tokens": HIDDEN}), "`tokens` is text, not a list"),
        ('{"tokens": null}', "`tokens` is nothing, not a list"),
        (json.dumps([GOOD, HIDDEN]), "token 2 is text, not a mapping"),
        (json.dumps([GOOD, {"id": HIDDEN}]), "token 2 lacks `name`"),
        (json.dumps([{**GOOD, "role": HIDDEN}]), "`role` of token 1 must be reader or caller or admin"),
        (json.dumps([{**GOOD, "sha256": HIDDEN}]), "`sha256` of token 1 must be 64 hexadecimal digits"),
        (json.dumps([{**GOOD, "max_running": HIDDEN}]), "`max_running` of token 1 must be a whole number from 1"),
        (json.dumps([{**GOOD, HIDDEN: 1}]), "token 1 has a field that there is not"),
        (f'{{"tokens": [\n{HIDDEN}', r"is not YAML or JSON \(line 2, column 8\)"),
        ("\x00\udcff", "is not YAML or JSON"),
        *((f"!!{kind} {HIDDEN}", "is not YAML or JSON") for kind in ("bool", "timestamp", "int", "float")),
        ('!!int ""', "is not YAML or JSON"),
        (json.dumps([GOOD]).replace("}", ', "expires_at": .nan}'), "`expires_at` of token 1 must be a number"),
        (json.dumps([GOOD]).replace("}", ', "weight": .inf}'), "`weight` of token 1 must be a number above 0"),
        (json.dumps([{**GOOD, "id": "0123abcd\n"}]), "`id` of token 1 must be 8 hexadecimal digits"),
        *((empty, "holds no token") for empty in ("[]", "{}", " ", "null", "tokens: []")),
    ],
)  # fmt: skip
def test_a_variable_that_holds_no_tokens_is_refused_by_its_name_with_where_and_without_what_it_holds(
    text, says
):
    with pytest.raises(ConfigError, match=says) as refused:
        tokens.from_environment({"DSPOOL_TOKENS": text})
    assert refused.value.message.startswith("DSPOOL_TOKENS")
    assert refused.value.details["key"] == "DSPOOL_TOKENS"
    assert HIDDEN not in refused.value.message + repr(refused.value.details)


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "holds no token"), (b"word", "it is text"), (b"\xff", "no text in UTF-8")]
)
def test_a_file_that_a_variable_names_is_refused_by_the_name_of_the_variable(tmp_path, content, says):
    file = tmp_path / "tokens.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as refused:
        tokens.from_environment({"DSPOOL_TOKENS_FILE": str(file)})
    assert "DSPOOL_TOKENS_FILE" in refused.value.message
    with pytest.raises(ConfigError, match="no plain file"):
        tokens.from_environment({"DSPOOL_TOKENS_FILE": str(tmp_path)})


def test_what_is_asked_of_each_field_of_a_token_is_known():
    assert list(tokens.RULES) == [field.name for field in msgspec.structs.fields(Token)]


def test_two_tokens_with_one_id_are_refused():
    one = {"id": "0123abcd", "name": "ada", "role": "caller", "sha256": "0" * 64}
    with pytest.raises(ConfigError, match="two tokens"):
        parse(json.dumps([one, one]), "tokens.yaml")


def test_a_changed_file_counts_within_a_second_and_a_broken_one_changes_nothing(tmp_path, caplog):
    file, now = tmp_path / "tokens.yaml", [0.0]
    first, _ = issue(file, "ada", "caller")
    source = TokenSource(file, clock=lambda: now[0])
    second, token = issue(file, "bob", "caller")
    assert source.current().recognise(second.encode(), now=0.0) is None
    now[0] = 1.0
    assert source.current().recognise(second.encode(), now=0.0) == token
    revoke(file, "ada")
    now[0] = 2.0
    assert source.current().recognise(first.encode(), now=0.0) is None
    file.write_text("{ nonsense")
    now[0] = 3.0
    assert source.current().recognise(second.encode(), now=0.0) == token
    assert "stay as they were" in caplog.text
    file.unlink()
    now[0] = 4.0
    assert source.current().recognise(second.encode(), now=0.0) == token


def test_tokens_may_come_from_a_variable(tmp_path):
    file = tmp_path / "tokens.yaml"
    text, token = issue(file, "ada", "caller")
    source = TokenSource(None, file.read_text())
    assert source.current().recognise(text.encode(), now=0.0) == token
    as_json = json.dumps(yaml.safe_load(file.read_text())["tokens"])
    assert TokenSource(None, as_json).current().recognise(text.encode(), now=0.0) == token
    assert tokens.from_environment({"DSPOOL_TOKENS": as_json}) == as_json


def test_the_command_makes_lists_and_revokes(tmp_path):
    file = ["--file", str(tmp_path / "tokens.yaml")]
    run = CliRunner().invoke
    made = run(app, ["token", "new", "--role", "reader", "--name", "grafana", *file, "--json"])
    facts = json.loads(made.stdout)
    assert facts["token"].startswith(f"dsp_{facts['id']}_")
    assert Tokens(read(tmp_path / "tokens.yaml")).recognise(facts["token"].encode(), now=0.0).role == "reader"
    assert "grafana" in run(app, ["token", "list", *file]).stdout
    assert facts["token"] not in run(app, ["token", "list", *file, "--json"]).stdout
    assert run(app, ["token", "revoke", "grafana", *file]).exit_code == 0
    assert run(app, ["token", "revoke", "grafana", *file]).exit_code == 2
    assert run(app, ["token", "new", "--role", "root", "--name", "x", *file]).exit_code == 2
    assert run(app, ["token", "new", "--name", "a/b", *file]).exit_code == 2
