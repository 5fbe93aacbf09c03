"""`dspool scale`, `drain`, `restart`, `pause`, `resume`, `warm`, `deploy` and `status --decisions`, against a service
that answers from a table."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from dspool.cli import actions, app, deploy
from dspool.cli import service as service_module
from dspool.cli.deploy import program_of, progress_text
from dspool.cli.run_file import RunFile, this_process
from dspool.cli.warm import Bars
from dspool.core.lifecycle.warmup import StepRun, report
from dspool.errors import InvalidRequest
from dspool.messages import PoolStatus, VersionNumbers, WorkerStatus
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress

run = CliRunner().invoke
POOL = "/v1/pools/default"


class FakeService:
    """What it answers by method and path (a callable gets the request), and what it was asked."""

    def __init__(self, where: list[str]) -> None:
        self.where = where
        self.answers: dict[str, Any] = {}
        self.always = {
            f"GET {POOL}/alerts": {"alerts": []},
            f"GET {POOL}/programs": {"programs": [{"program": "qa", "version": 1}], "next_cursor": None},
        }
        self.asked: list[tuple[str, Any]] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        what = f"{request.method} {request.url.raw_path.decode()}"
        self.asked.append((what, json.loads(request.content) if request.content else None))
        answer = {**self.always, **self.answers}[what.partition("?")[0]]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(200, json=msgspec.to_builtins(answer))

    def __call__(self, *arguments: str) -> Any:
        return run(app, [*arguments, *self.where])

    def bodies(self, what: str) -> list[Any]:
        return [body for asked, body in self.asked if asked.partition("?")[0] == what]


@pytest.fixture
def service(monkeypatch, tmp_path):
    double = FakeService(["--state-dir", str(tmp_path)])
    monkeypatch.setattr(service_module, "transport_of", lambda run: httpx.MockTransport(double.answer))
    for module in (actions, deploy):
        monkeypatch.setattr(module, "LOOK_EVERY_S", 0.001)
    RunFile(tmp_path).write(msgspec.structs.replace(this_process("default"), url="http://dspool"))
    return double


def status_of(desired: int = 2, actual: int = 2, reason: str = "") -> PoolStatus:
    workers = tuple(WorkerStatus(f"default-w{n}-a", n, "ready") for n in range(actual))
    return PoolStatus("default", "ready", True, desired, actual, 0, 1, workers, {"qa": 1}, reason)


def problem(status: int, code: str, detail: str, **details: Any) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": detail, "status": status, "details": details})


# --- size ----------------------------------------------------------------------------------------------


def test_scale_says_what_was_and_what_is_wanted_now(service):
    service.answers = {f"GET {POOL}": status_of(), f"POST {POOL}/resize": {"desired": 4}}
    ended = service("scale", "4")
    assert (ended.exit_code, ended.stdout) == (0, "pool default: 2 -> 4 workers, 2 take traffic now\n")
    assert service.bodies(f"POST {POOL}/resize") == [{"size": 4}]
    assert json.loads(service("scale", "4", "--json").stdout) == {
        "pool": "default",
        "before": 2,
        "desired": 4,
        "actual": 2,
    }


def test_scale_waits_until_so_many_workers_take_traffic(service):
    actual = iter([2, 2, 3, 4])
    service.answers = {f"GET {POOL}": lambda _: status(next(actual)), f"POST {POOL}/resize": {"desired": 4}}

    def status(actual):
        return httpx.Response(200, json=msgspec.to_builtins(status_of(4, actual)))

    ended = service("scale", "4", "--wait", "30")
    assert (ended.exit_code, "4 take traffic now" in ended.stdout) == (0, True)


def test_scale_that_does_not_come_about_in_time_says_why_with_exit_code_1(service):
    service.answers = {
        f"GET {POOL}": status_of(reason="no room"),
        f"POST {POOL}/resize": {"desired": 4},
    }
    ended = service("scale", "4", "--wait", "0.01")
    assert ended.exit_code == 1
    assert ended.stdout == "pool default: 2 -> 4 workers, 2 take traffic now after 0.01 s (no room)\n"


def test_a_size_outside_the_bounds_is_refused_in_plain_words(service):
    why = "size must be between min_pool_size 1 and max_pool_size 8, got 99"
    service.answers = {
        f"GET {POOL}": status_of(),
        f"POST {POOL}/resize": lambda _: problem(422, "invalid_request", why),
    }
    ended = service("scale", "99")
    assert (ended.exit_code, ended.stderr) == (2, f"Error: {why}\n")
    as_json = json.loads(service("scale", "99", "--json").stderr)
    assert (as_json["code"], as_json["message"]) == ("invalid_request", why)


# --- workers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["drain", "restart"])
@pytest.mark.parametrize("named", ["1", "default-w1-a"])
def test_a_worker_is_named_by_its_id_or_its_ordinal(service, verb, named):
    asked = f"POST {POOL}/workers/default-w1-a/{verb}"
    service.answers = {f"GET {POOL}": status_of(), asked: {"worker": "default-w1-a", "gone": True}}
    ended = service(verb, named)
    assert (ended.exit_code, ended.stdout) == (0, "worker default-w1-a is gone\n")
    assert json.loads(service(verb, named, "--json").stdout) == {
        "pool": "default",
        "worker": "default-w1-a",
        "gone": True,
    }


def test_an_unknown_worker_is_refused_with_the_names_of_those_there_are(service):
    service.answers = {f"GET {POOL}": status_of()}
    ended = service("drain", "7")
    assert ended.exit_code == 2
    assert "no worker '7'; it has default-w0-a, default-w1-a" in ended.stderr
    assert "did you mean default-w0-a?" in service("drain", "default-w0-b").stderr


def test_drain_asks_again_until_the_worker_is_gone(service):
    answers = iter([{"gone": False}, {"gone": False}, problem(404, "unknown_worker", "no such worker")])
    service.answers = {
        f"GET {POOL}": status_of(),
        f"POST {POOL}/workers/default-w0-a/drain": lambda _: next_of(answers),
    }
    ended = service("drain", "0")
    assert (ended.exit_code, ended.stdout) == (0, "worker default-w0-a is gone\n")


def next_of(answers):
    answer = next(answers)
    return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


def test_a_drain_that_takes_longer_than_the_wait_goes_on_and_says_so(service):
    service.answers = {
        f"GET {POOL}": status_of(),
        f"POST {POOL}/workers/default-w0-a/drain": {"worker": "default-w0-a", "gone": False},
    }
    ended = service("drain", "0", "--wait", "0")
    assert ended.exit_code == 1
    assert ended.stdout == "worker default-w0-a is still finishing after 0 s; it goes by itself\n"


def test_pause_and_resume_say_how_the_pool_is_now(service):
    service.answers = {f"POST {POOL}/pause": {"paused": True}, f"POST {POOL}/resume": {"paused": False}}
    assert service("pause").stdout == "pool default refuses new operations until `dspool resume`\n"
    assert service("resume").stdout == "pool default takes operations\n"
    assert json.loads(service("pause", "--json").stdout) == {"pool": "default", "paused": True}


def test_another_pool_of_the_service_can_be_named(service):
    service.answers = {"POST /v1/pools/second/pause": {"paused": True}}
    assert service("pause", "--pool", "second").exit_code == 0
    service.answers = {
        "POST /v1/pools/third/pause": lambda _: problem(404, "unknown_pool", "no pool 'third'")
    }
    ended = service("pause", "--pool", "third")
    assert (ended.exit_code, ended.stderr) == (2, "Error: no pool 'third'\n")


def test_the_token_of_the_environment_is_shown_to_the_service(service, monkeypatch):
    seen = []
    service.answers = {f"POST {POOL}/pause": lambda request: paused(request)}

    def paused(request):
        seen.append(request.headers.get("authorization"))
        return problem(403, "not_allowed", "this needs the role admin")

    monkeypatch.setenv("DSPOOL_TOKEN", "t-1")
    ended = service("pause")
    assert (ended.exit_code, ended.stderr) == (2, "Error: this needs the role admin\n")
    assert seen == ["Bearer t-1"]


def test_what_is_no_dspool_service_is_told_apart(service):
    service.answers = {f"POST {POOL}/pause": httpx.Response(502, text="<html>bad gateway</html>")}
    ended = service("pause")
    assert ended.exit_code == 1
    assert ended.stderr == "Error: http://dspool answered 502, and not as dspool does\n"


# --- warming -------------------------------------------------------------------------------------------

MOMENTS = [
    WarmProgress(1, "begin", total=2),
    WarmProgress(2, "stage", index=0, total=1),
    WarmProgress(3, "step", "default-w0-a", "load_programs", 0, 1),
    WarmProgress(4, "stage", index=1, total=1),
    WarmProgress(5, "step", "default-w1-a", "load_programs", 0, 1, "no room"),
    WarmProgress(6, "end", error="stage 1 failed"),
]


def warmed(*, failed: bool = False) -> httpx.Response:
    runs = [
        StepRun("default-w0-a", 0, "load_programs", 0.25),
        StepRun("default-w1-a", 0, "load_programs", 0.75, "no room" if failed else ""),
    ]
    stopped = "stage 1 failed: default-w1-a: no room" if failed else ""
    end = report("staged", runs, expected_steps=1, planned=(1, 1), duration_s=1.0, stopped=stopped)
    told = [("status", moment) for moment in MOMENTS[: 5 if failed else 3]] + [("final", end)]
    lines = [f"event: {name}\ndata: {msgspec.json.encode(data).decode()}\n\n" for name, data in told]
    return httpx.Response(200, text=": heartbeat\n\n" + "".join(lines))


def test_warm_shows_progress_and_the_report_with_distinct_workers(service):
    service.answers = {f"POST {POOL}/warm": lambda _: warmed()}
    ended = service("warm", "--strategy", "staged")
    assert ended.exit_code == 0
    assert service.bodies(f"POST {POOL}/warm") == [{"strategy": "staged"}]
    assert "default-w0-a  load_programs (1 of 1) done" in ended.stdout
    assert "staged: 2 warm, 0 failed, 2 distinct workers, 100% of 2 steps in 1.00 s" in ended.stdout
    assert "0 load_programs  2     0       100%     0.500 s  0.750 s  0.750 s" in ended.stdout
    facts = json.loads(service("warm", "--json").stdout)
    assert facts["distinct_workers"] == 2
    assert {worker["worker_id"] for worker in facts["workers"]} == {"default-w0-a", "default-w1-a"}
    assert (facts["steps"][0]["count"], facts["steps"][0]["success_rate"]) == (2, 1.0)


def test_a_warm_up_that_stopped_says_why_with_exit_code_1_and_keeps_the_partial_report(service):
    service.answers = {f"POST {POOL}/warm": lambda _: warmed(failed=True)}
    ended = service("warm")
    assert ended.exit_code == 1
    assert "default-w1-a  load_programs (1 of 1) failed: no room" in ended.stdout
    assert "stopped: stage 1 failed: default-w1-a: no room" in ended.stdout
    assert "default-w0-a  yes" in ended.stdout


def test_two_warm_ups_at_once_conflict_in_plain_words(service):
    body = {"code": "conflict", "detail": "a warm-up is running; wait for its end", "status": 409}
    service.answers = {
        f"POST {POOL}/warm": lambda _: httpx.Response(200, text=f"event: error\ndata: {json.dumps(body)}\n\n")
    }
    ended = service("warm")
    assert (ended.exit_code, ended.stderr) == (2, "Error: a warm-up is running; wait for its end\n")
    assert service("warm", "--strategy", "fast").exit_code == 2


def test_a_warm_up_whose_service_went_away_is_an_error(service):
    service.answers = {f"POST {POOL}/warm": lambda _: httpx.Response(200, text="")}
    assert "the stream of http://dspool broke off before its end" in service("warm").stderr


def test_on_a_terminal_each_worker_has_a_bar_with_its_last_step():
    screen = io.StringIO()
    bars = Bars(Console(file=screen, force_terminal=True, width=120))
    for moment in MOMENTS:
        bars.show(moment)
    bars.close()
    shown = screen.getvalue()
    for words in ("all workers", "default-w0-a", "1/1", "default-w1-a", "0/1", "load_programs: failed"):
        assert words in shown


# --- deploying -----------------------------------------------------------------------------------------

SPEC = {"signature": "question -> answer"}
OLD, NEW = VersionNumbers(400, 4, 0.02), VersionNumbers(40, 10, 0.021)


class Events(httpx.AsyncByteStream):
    """Server-sent events, and then the end of the connection: as it should be, or cut."""

    def __init__(self, *events: tuple[str, Any], cut: bool = False) -> None:
        self.events, self.cut = events, cut

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for name, data in self.events:
            yield b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))
        if self.cut:
            raise httpx.ReadError("connection reset")


def deployment(service, *states: Rollout, failed: dict[str, Any] | None = None, cut: bool = False) -> None:
    """A deployment that goes through `states`, and then fails or does not."""
    end = ("error", failed) if failed else ("final", {"program": "qa", "version": 2})
    told = [("status", state) for state in states]
    events = Events(*told, cut=True) if cut else Events(*told, end)
    service.answers = {f"POST {POOL}/programs/qa/versions": lambda _: httpx.Response(200, stream=events)}


def rollout(phase: Any, **more: Any) -> Rollout:
    about = {"canary": "default-w0-a", "old": OLD, "new": NEW, "began_at": 2.0, "ended_at": 5.0, **more}
    return Rollout(program="qa", version=2, previous=1, phase=phase, **about)  # type: ignore[arg-type]


@pytest.fixture
def spec(tmp_path):
    file = tmp_path / "qa.json"
    file.write_text(json.dumps(SPEC))
    return str(file)


def test_deploy_shows_the_comparison_and_that_all_workers_have_it(service, spec):
    deployment(service, rollout("canary"), rollout("done", reason="error rate 0.0%"))
    ended = service("deploy", "qa", spec, "--watch", "30")
    assert ended.exit_code == 0, ended.output
    assert service.bodies(f"POST {POOL}/programs/qa/versions") == [{"spec": SPEC}]
    assert any(what.endswith("?canary_s=30") for what, _ in service.asked)
    assert "canary  qa v2: default-w0-a tries it" in ended.stdout
    assert "v1       400         1.0%    20.0 ms" in ended.stdout
    assert "v2       40          25.0%   21.0 ms" in ended.stdout
    assert "qa v2 is on all workers after 3.0 s" in ended.stdout


def test_deploy_that_was_rolled_back_says_why_with_exit_code_1(service, spec):
    why = "version 2 of qa was rolled back: error rate 25.0%, before 1.0%"
    worse = {"code": "program_error", "detail": why, "status": 500}
    end = rollout("rolled back", reason="error rate 25.0%, before 1.0%")
    deployment(service, rollout("canary"), end, failed=worse)
    ended = service("deploy", "qa", spec)
    assert ended.exit_code == 1
    assert "qa v2 was rolled back: error rate 25.0%, before 1.0%; v1 is current" in ended.stdout
    deployment(service, rollout("canary"), end, failed=worse)
    facts = json.loads(service("deploy", "qa", spec, "--json").stdout)
    assert (facts["phase"], facts["new"]["errors"], facts["old"]["errors"]) == ("rolled back", 10, 4)


def test_deploy_of_a_version_that_does_not_load_says_so(service, spec):
    failed = rollout("failed", reason="no field 'x'", old=None, new=None)
    deployment(service, failed, failed={"code": "program_error", "detail": "no field 'x'", "status": 500})
    ended = service("deploy", "qa", spec)
    assert ended.exit_code == 1
    assert "qa v2 was not deployed: no field 'x'; v1 is current" in ended.stdout


def test_deploy_that_was_refused_before_it_began_is_one_line(service, spec):
    running = problem(409, "conflict", "a deployment is running; wait for its end")
    service.answers = {f"POST {POOL}/programs/qa/versions": running}
    ended = service("deploy", "qa", spec)
    assert (ended.exit_code, ended.stderr) == (2, "Error: a deployment is running; wait for its end\n")


def test_deploy_of_what_runs_already_says_so_and_is_no_failure(service):
    same = problem(
        409, "conflict", "version 2 of qa already runs exactly this", reason="nothing_changed", version=2
    )
    service.answers = {f"POST {POOL}/programs/qa/versions": same}
    ended = service("deploy", "qa")
    assert (ended.exit_code, ended.stdout) == (0, "version 2 of qa already runs exactly this\n")
    facts = json.loads(service("deploy", "qa", "--json").stdout)
    assert (facts["phase"], facts["version"]) == ("unchanged", 2)


def test_deploy_of_a_name_that_the_pool_does_not_have_needs_new(service, spec):
    ended = service("deploy", "q_a", spec)
    said = "Error: no program 'q_a'; did you mean qa?; --new makes a new program\n"
    assert (ended.exit_code, ended.stderr) == (2, said)
    assert service.bodies(f"POST {POOL}/programs/q_a/versions") == []
    done = ("final", {"program": "q_a", "version": 1})
    first = ("status", msgspec.structs.replace(rollout("done"), program="q_a", version=1))
    service.answers = {
        f"POST {POOL}/programs/q_a/versions": lambda _: httpx.Response(200, stream=Events(first, done))
    }
    assert "q_a v1 is on all workers" in service("deploy", "q_a", spec, "--new").stdout
    there = service("deploy", "qa", spec, "--new")
    assert (there.exit_code, "already" in there.stderr) == (2, True)


def test_deploy_names_only_what_is_new(service, tmp_path):
    state = tmp_path / "tuned.json"
    state.write_text('{"p": {"demos": []}}')
    for arguments, body in (
        ((), None),
        (("--state", str(state)), {"state": {"p": {"demos": []}}}),
        (
            ("--from", "shop:Answer", "--kwargs", '{"n": 1}'),
            {"import_path": "shop:Answer", "kwargs": {"n": 1}},
        ),
        (("--program-dir", str(tmp_path)), {"program_dir": str(tmp_path)}),
    ):
        deployment(service, rollout("done"))
        service.asked.clear()
        ended = service("deploy", "qa", *arguments)
        assert ended.exit_code == 0, ended.output
        assert [what for _, what in service.asked if what] == ([body] if body else [])


def test_deploy_refuses_what_it_cannot_read_or_what_is_named_twice(service, spec, tmp_path):
    pickle = tmp_path / "state.pkl"
    pickle.write_bytes(b"\x80\x04N.")
    for arguments, why in (
        ((spec, "--from", "shop:Answer"), "give one of FILE.json, --from and --program-dir"),
        (("--state", str(pickle)), "is a pickle, which runs code when it is read"),
        (("--kwargs", "[1]"), "--kwargs must be a JSON object"),
    ):
        ended = service("deploy", "qa", *arguments)
        assert ended.exit_code == 2
        assert why in ended.stderr
    assert service.asked == []


def test_a_version_that_is_not_on_all_workers_says_on_how_many(service):
    deployment(
        service, rollout("done", workers_done=1, workers_total=2, reason="1 of 2 workers still run v1")
    )
    assert "qa v2 is on 1 of 2 workers after" in service("deploy", "qa").stdout


def test_a_deployment_whose_connection_was_cut_is_followed_to_its_end(service, spec):
    deployment(service, rollout("canary", ended_at=None), cut=True)
    later = iter([rollout("canary", ended_at=None), rollout("rolling out", ended_at=None), rollout("done")])
    earlier = Rollout(program="qa", version=1, previous=None, phase="done", began_at=1.0, ended_at=1.5)
    service.answers[f"GET {POOL}/rollouts"] = lambda _: httpx.Response(
        200, json={"rollouts": msgspec.to_builtins([next(later), earlier])}
    )
    ended = service("deploy", "qa", spec)
    assert ended.exit_code == 0, ended.output
    assert "qa v2 is on all workers" in ended.stdout


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "cannot be read"), ("{", "is not JSON"), ("[1]", "must hold a JSON object, it holds a list")],
)
def test_a_file_that_holds_no_program_is_refused_before_anything_is_asked(service, tmp_path, content, why):
    file = tmp_path / "bad.json"
    if content is not None:
        file.write_text(content)
    ended = service("deploy", "qa", str(file))
    assert ended.exit_code == 2
    assert why in ended.stderr
    assert service.asked == []


def test_what_dspy_saved_is_recognised(tmp_path):
    part = {"demos": [], "traces": [], "train": [], "signature": {"fields": []}, "lm": None}
    file = tmp_path / "p.json"
    for saved in (part, {"metadata": {}, **part}, {"a.predict": part, "b": part, "metadata": {}}):
        file.write_text(json.dumps(saved))
        assert program_of(file) == {"state": saved}
    for other in (SPEC, {"import_path": "a:B"}, {"spec": SPEC, "state": part}):
        file.write_text(json.dumps(other))
        assert program_of(file) == other
    with pytest.raises(InvalidRequest):
        program_of(tmp_path)


def test_the_progress_of_a_deployment_in_one_line():
    for state, words in (
        ("loading", "loads it"),
        ("rolling out", "the workers take it over"),
        ("done", "done"),
    ):
        assert words in progress_text(rollout(state))


VERSIONS = {
    "program": "qa",
    "version": 1,
    "versions": [1, 2],
    "deployments": [
        {"version": 2, "kind": "spec", "summary": "question -> answer", "made_by": "deploy", "by": "ada"},
        {"version": 1, "kind": "import_path", "summary": "shop:Answer", "source": "0123456789abcdef"},
    ],
}


def test_versions_and_what_their_canaries_saw_fit_a_terminal(service):
    numbers = {"old": VersionNumbers(4000, 40, 0.021), "new": VersionNumbers(20, 12, 0.03)}
    why = "error rate 60.0%, before 1.0%"
    ended = rollout("rolled back", by="ada", reason=why, **numbers)
    back = msgspec.structs.replace(rollout("done", new=None), version=1, kind="rollback", by="somebody")
    service.answers = {
        f"GET {POOL}/programs": {"programs": [VERSIONS], "next_cursor": None},
        f"GET {POOL}/rollouts": {"rollouts": [back, ended]},
    }
    shown = service("versions", "qa").stdout
    lines = shown.splitlines()
    assert lines[1].startswith("v2       question -> answer  -         deploy   ada")
    assert lines[2].startswith("v1 *     shop:Answer         01234567")
    assert "rollback, done" in shown
    assert "  canary: 20, 60.0% failed, 30 ms; v1 meanwhile: 4,000, 1.0% failed, 21 ms\n" in shown
    assert lines[-1].strip() == why
    assert max(map(len, lines)) <= 80
    facts = json.loads(service("versions", "qa", "--json").stdout)
    assert (facts["version"], facts["rollouts"][1]["by"]) == (1, "ada")
    mistyped = service("versions", "qaa")
    assert mistyped.exit_code == 2
    assert mistyped.stderr == "Error: there is no program 'qaa' to show; did you mean qa?\n"


def test_rollback_says_what_is_current_again(service):
    done = {"program": "qa", "version": 1}
    service.answers = {f"POST {POOL}/programs/qa/rollback": done}
    ended = service("rollback", "qa")
    assert (ended.exit_code, ended.stdout) == (0, "qa v1 is current again on all workers\n")
    assert json.loads(service("rollback", "qa", "1", "--json").stdout) == {"pool": "default", **done}
    assert [body for _, body in service.asked] == [{}, {"version": 1}]
    service.answers = {f"POST {POOL}/programs/qa/rollback": problem(404, "unknown_program", "no version 9")}
    assert service("rollback", "qa", "9").exit_code == 2


# --- decisions -----------------------------------------------------------------------------------------


def test_status_shows_each_decision_with_the_numbers_that_led_to_it(service):
    grew = DecisionRecord(
        1.0, 4, 1, 2, "grow", "backlog needs 5 workers", {"backlog": 40.0, "demand": 12.3456}
    )
    held = DecisionRecord(2.0, 4, 1, 4, "hold", "utilization needs 4 workers", times=30)
    would = DecisionRecord(3.0, 3, 0, 4, "shrink", "utilization needs 3 workers", source="dry run")
    off = problem(403, "not_allowed", "enable_metrics is off")
    service.answers = {
        f"GET {POOL}": status_of(),
        f"GET {POOL}/metrics": off,
        f"GET {POOL}/store": off,
        f"GET {POOL}/decisions": lambda _: httpx.Response(
            200, json={"decisions": msgspec.to_builtins([would, held, grew])}
        ),
    }
    ended = service("status", "--decisions", "--limit", "5")
    assert ended.exit_code == 0
    assert "grow    2 -> 4 + 1 overflow  sizing: backlog needs 5 workers" in ended.stdout
    assert "backlog 40  demand 12.35" in ended.stdout
    assert "shrink  4 -> 3  dry run: utilization needs 3 workers" in ended.stdout
    assert ended.stdout.index("backlog needs") < ended.stdout.index("needs 4 workers (x30)")
    assert any(what == f"GET {POOL}/decisions?limit=5" for what, _ in service.asked)
    facts = json.loads(service("status", "--decisions", "--json").stdout)
    assert [one["action"] for one in facts["decisions"]] == ["shrink", "hold", "grow"]
    assert "decisions" not in json.loads(service("status", "--json").stdout)
    service.answers[f"GET {POOL}/decisions"] = {"decisions": []}
    assert "no decision about the size yet" in service("status", "--decisions").stdout
