"""`dspool eval`: examples through the real service on a real worker, scored here, and what the scores say."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys

import dspy
import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli.evaluation import report, report_text
from dspool.cli.evaluation.examples import input_names, metric_of, read_examples
from dspool.cli.evaluation.running import Candidate, ScoredRow
from dspool.cli.evaluation.statistics import difference, mean_interval, quantile
from dspool.cli.run_file import RunFile, this_process
from dspool.errors import InvalidRequest
from tests.serve.local_service import LocalService

RIGHT = "tests.unit.judged:right"


# --- what scores say --------------------------------------------------------------------------------


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says():
    chance, held = random.Random(7), 0
    for number in range(200):
        low, high = mean_interval([float(chance.random() < 0.3) for _ in range(60)], seed=number)
        held += low <= 0.3 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_a_difference_is_shown_only_when_pairs_show_it():
    chance = random.Random(3)
    first = [chance.random() for _ in range(80)]
    same = difference(first, [score + chance.gauss(0, 0.2) for score in first])
    better = difference(first, [score + 0.1 + chance.gauss(0, 0.2) for score in first])
    assert not same.shown
    assert better.shown
    assert better.interval.low > 0
    assert better.mean == pytest.approx(0.1, abs=0.06)


def test_versions_that_are_equally_good_are_called_different_in_about_one_of_twenty_comparisons():
    chance = random.Random(11)
    shown = 0
    for number in range(100):
        pairs = [(chance.gauss(0, 1), chance.gauss(0, 1)) for _ in range(20)]
        shown += difference(*zip(*pairs, strict=True), seed=number).shown
    assert shown <= 12


def test_few_pairs_are_tested_exactly_and_none_that_differs_shows_nothing():
    # All five better: of the 32 ways to give them signs, two are as extreme.
    assert difference([0.0] * 5, [1.0] * 5).p == 2 / 32
    assert difference([1.0, 0.0], [1.0, 0.0]).p == 1.0
    assert difference([0.0, 1.0, 1.0], [1.0, 0.0, 1.0])[-3:] == (1, 1, 1)


def test_quantiles_are_values_that_occurred():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0], 0.95) == 3.0


# --- what is given ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "none of the inputs question"),
        ("[1]", "line 1: an example is an object, this is a list"),
        ('{"question": 1}\n{"question"', "line 2: not JSON"),
        ("\n \n", "no examples"),
    ],
)
def test_a_file_that_holds_no_examples_is_refused_with_the_line(tmp_path, text, why):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(InvalidRequest, match=why.replace("[", r"\[")):
        read_examples(tmp_path / "data.jsonl", ["question"], None)


def test_examples_keep_their_line_and_an_input_that_is_missing_is_left_to_the_program(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(
        '{"question": "a", "expected": 1}\n\n{"question": "b", "context": "c"}\n{"question": "d"}\n'
    )
    found = read_examples(file, ["context", "question"], 2)
    assert [(one.line, one.inputs) for one in found] == [
        (1, {"question": "a"}),
        (3, {"context": "c", "question": "b"}),
    ]


def test_inputs_are_those_of_the_schema_else_of_the_signature():
    assert input_names({"inputs": {"properties": {"order": {}, "note": {}}}}) == ["order", "note"]
    assert input_names({"signature": {"inputs": [{"name": "question"}]}}) == ["question"]
    assert input_names({"signature": None}) == []


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("tests.unit.judged", "names no metric"),
        ("no_such_module:right", "ModuleNotFoundError"),
        ("tests.unit.judged:wrong", "AttributeError"),
        ("tests.unit.judged:__doc__", "is a str, not a function"),
    ],
)
def test_a_metric_that_cannot_be_had_is_refused_with_the_reason(path, why):
    with pytest.raises(InvalidRequest, match=why):
        metric_of(path)


# --- on a service -----------------------------------------------------------------------------------

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    directory = tmp_path_factory.mktemp("service")
    with LocalService(directory, service={"session_imports": True}) as running:
        RunFile(directory).write(msgspec.structs.replace(this_process("default"), url=running.url))
        running.directory = directory
        yield running


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "data.jsonl"
    lines = [
        {
            "context": f"{town} is the capital of {land}.",
            "question": f"What is the capital of {land}?",
            "expected": town if number else "Atlantis",
        }
        for number, (land, town) in enumerate(CAPITALS.items())
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def evaluate(service, data, *more, metric=RIGHT):
    return CliRunner().invoke(
        app,
        ["eval", "qa", str(data), "--metric", metric, "--json", "--state-dir", str(service.directory), *more],
    )


def test_a_program_is_evaluated_on_the_pool_and_each_example_has_its_row(service, data, tmp_path):
    rows = tmp_path / "rows.jsonl"
    ended = evaluate(service, data, "--out", str(rows))
    assert ended.exit_code == 0, ended.output
    [found] = json.loads(ended.stdout)["results"]
    assert (found["candidate"], found["examples"], found["mean"], found["errors"]) == ("current", 4, 0.75, 0)
    assert found["interval"][0] < 0.75 < found["interval"][1]
    assert found["p50_s"] > 0
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert {row["line"]: row["score"] for row in written} == {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0}
    one = next(row for row in written if row["line"] == 2)
    assert one["input"]["question"] == "What is the capital of Italy?"
    assert "Rome" in one["output"]["answer"]
    assert one["operation_id"]
    assert one["error"] is None


def test_what_fails_and_what_the_metric_raises_count_as_nothing_and_are_told(service, data, tmp_path):
    with data.open("a") as more:
        more.write('{"question": "no context?", "expected": "x"}\n')
        more.write('{"question": "q", "context": "c", "expected": "nothing"}\n')
    rows = tmp_path / "rows.jsonl"
    ended = evaluate(service, data, "--out", str(rows), metric="tests.unit.judged:strict")
    assert ended.exit_code == 0, ended.output
    [found] = json.loads(ended.stdout)["results"]
    assert (found["examples"], found["errors"], found["mean"]) == (6, 2, 0.5)
    errors = {row["line"]: row["error"] for row in map(json.loads, rows.read_text().splitlines())}
    assert errors[5].startswith("invalid_request: ")
    assert errors[6] == "the metric raised LookupError: no such label"


def test_a_metric_may_do_without_a_trace_and_a_mean_that_is_too_low_ends_with_1(service, data):
    ended = evaluate(service, data, "--min-score", "0.9", metric="tests.unit.judged:graded")
    assert ended.exit_code == 1
    assert 0 < json.loads(ended.stdout)["results"][0]["mean"] < 0.9


def test_another_state_is_tried_without_a_deployment_and_leaves_nothing(service, data, tmp_path):
    tuned = dspy.Predict("context, question -> answer")
    tuned.signature = tuned.signature.with_instructions("Answer with one word.")
    tuned.save(tmp_path / "tuned.json")
    ended = evaluate(service, data, "--state", str(tmp_path / "tuned.json"), "--against", "current")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert [one["candidate"] for one in found["results"]] == ["current", "tuned.json"]
    assert (found["comparison"]["of"], found["comparison"]["to"]) == ("tuned.json", "current")
    assert found["comparison"]["pairs"] == 4
    assert asyncio.run(service.pool.current_versions())["qa"] == 1
    listed = CliRunner().invoke(app, ["sessions", "--json", "--state-dir", str(service.directory)])
    assert json.loads(listed.stdout)["sessions"] == []


def test_a_version_that_is_not_there_is_refused_with_those_there_are(service, data):
    ended = evaluate(service, data, "--version", "7")
    assert ended.exit_code == 2
    assert "qa" in ended.stderr
    assert "it has: 1" in ended.stderr


def test_versions_are_compared_on_the_same_examples(tmp_path, data):
    with LocalService(tmp_path, service={"session_imports": True}) as running:
        running.directory = tmp_path
        RunFile(tmp_path).write(msgspec.structs.replace(this_process("default"), url=running.url))
        spec = {"signature": "context, question -> answer", "module": "ChainOfThought"}
        sent = httpx.post(
            f"{running.url}/v1/pools/default/programs/qa/versions", json={"spec": spec}, timeout=60
        )
        assert sent.status_code == 201, sent.text
        ended = evaluate(running, data, "--version", "1", "--against", "current")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert [one["candidate"] for one in found["results"]] == ["current", "v1"]
    assert found["comparison"]["equal"] == 4


@pytest.mark.parametrize(
    "more",
    [
        ("--against", "current"),
        ("--against", "old"),
        ("--version", "1", "--state", "x.json"),
        ("--state", "gone.json"),
    ],
)
def test_what_contradicts_itself_is_refused(service, data, more):
    assert evaluate(service, data, *more).exit_code == 2


def test_ctrl_c_shows_and_writes_what_there_is(service, tmp_path):
    data, rows = tmp_path / "data.jsonl", tmp_path / "rows.jsonl"
    line = json.dumps(
        {"context": "Paris is the capital of France.", "question": "Which?", "expected": "Paris"}
    )
    data.write_text(f"{line}\n" * 20_000)
    command = [sys.executable, "-m", "dspool.cli", "eval", "qa", str(data), "--metric", RIGHT, "--json"]
    command += ["--out", str(rows), "--state-dir", str(service.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not rows.exists() or not rows.stat().st_size:
            assert running.poll() is None, running.stderr.read()
        running.send_signal(signal.SIGINT)
        said, complaints = running.communicate(timeout=120)
    assert running.returncode == 130, complaints
    [found] = json.loads(said)["results"]
    assert 0 < found["examples"] < 20_000
    assert len(rows.read_text().splitlines()) == found["examples"]


# --- for people -------------------------------------------------------------------------------------


def row(candidate, line, score, cost=None):
    return ScoredRow(candidate, line, {"q": line}, {"a": 1}, score, 10, cost, 0.5, f"op-{line}", None)


def test_the_table_says_mean_interval_errors_tokens_cost_times_and_the_verdict():
    rows = [row("current", n, float(n % 2), 0.001) for n in range(40)]
    rows += [row("v3", n, 1.0, 0.002) for n in range(40)]
    text = report_text(report("answers", [Candidate("current"), Candidate("v3", 3)], rows))
    first, current, new, verdict = text.splitlines()
    assert first.split() == [
        "version",
        "examples",
        "mean",
        "95",
        "%",
        "errors",
        "tokens",
        "cost",
        "p50",
        "p95",
    ]
    assert "0.500" in current
    assert "$0.0400" in current
    assert "400" in new
    assert "v3 against current: +0.500" in verdict
    assert verdict.endswith(": better")


def test_the_table_is_followed_by_why_examples_failed_the_commonest_first():
    rows = [row("current", n, 1.0) for n in range(3)]
    rows += [row("current", n, None)._replace(error="program_error: no order 4711") for n in range(3, 8)]
    rows += [row("current", n, None)._replace(error=f"invalid_request: {n}") for n in range(8, 13)]
    found = report("answers", [Candidate("current")], rows)
    assert found["results"][0]["reasons"] == {
        "program_error: no order 4711": 5,
        "invalid_request: 8": 1,
        "invalid_request: 9": 1,
    }
    assert report_text(found).splitlines()[2:] == [
        "current: 5 failed: program_error: no order 4711",
        "current: 1 failed: invalid_request: 8",
        "current: 1 failed: invalid_request: 9",
        "current: 3 failed otherwise: --out writes why for each",
    ]


def test_a_table_without_failures_has_no_more_to_say():
    found = report("answers", [Candidate("current")], [row("current", 1, 1.0)])
    assert len(report_text(found).splitlines()) == 2
