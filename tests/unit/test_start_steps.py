"""The steps of a start: bounded by `init_timeout_s`, told, tried once more, and named where they fail."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from dspool.config import PoolConfig
from dspool.core.lifecycle.start_steps import StartStep, StartSteps, StepTiming, timings_text
from dspool.errors import ConfigError, WorkerStartFailed
from dspool_serve.ingress.starting import HTTP, Starting, in_thread, keep_logs, said_by

ONCE = StartStep("pool", "warm workers")
TWICE = StartStep("serve", "Ray Serve and its proxy", log="serve/", repeatable=True)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return []


@pytest.fixture
def starting(clock, told):
    return Starting(60.0, lambda step, text: told.append((step, text)), clock)


async def nothing():
    return None


def test_it_is_said_what_is_waited_for_and_since_when():
    steps = StartSteps(60.0, now=100.0)
    steps.begin(TWICE, now=101.0)
    steps.begin(ONCE, now=103.0)
    assert steps.waiting(now=110.0) == [
        "waiting for Ray Serve and its proxy: 9 s of at most 60 s",
        "waiting for warm workers: 7 s of at most 60 s",
    ]
    steps.end(ONCE, now=111.0)
    assert len(steps.waiting(now=111.0)) == 1


def test_timings_have_the_order_in_which_steps_began_and_a_picture():
    steps = StartSteps(60.0, now=100.0)
    steps.begin(TWICE, now=101.0)
    steps.begin(ONCE, now=102.0)
    steps.end(ONCE, now=103.0)
    steps.end(TWICE, now=105.0)
    assert steps.timings() == [StepTiming("serve", 1.0, 4.0), StepTiming("pool", 2.0, 1.0)]
    serve, pool = timings_text(steps.timings()).splitlines()
    assert serve.startswith("serve    4.00 s")
    assert serve.index("#") < pool.index("#")
    assert timings_text([]) == ""


@pytest.mark.parametrize(
    ("step", "attempt", "after_s", "again"),
    [(TWICE, 1, 5.0, True), (TWICE, 2, 5.0, False), (TWICE, 1, 31.0, False), (ONCE, 1, 5.0, False)],
)
def test_a_step_is_tried_once_more_while_there_is_time(step, attempt, after_s, again):
    steps = StartSteps(60.0, now=0.0)
    steps.begin(step, now=0.0)
    assert steps.may_repeat(step, attempt, now=after_s) is again


async def test_what_gave_up_early_is_undone_and_tried_once_more(starting, told):
    calls = []

    async def work():
        calls.append("work")
        if calls.count("work") == 1:
            raise RuntimeError("a traceback\n  The actor died unexpectedly")
        return 7

    async def undo():
        calls.append("undo")

    assert await starting.run(TWICE, work, undo) == 7
    assert calls == ["work", "undo", "work"]
    warning = "Ray Serve and its proxy gave up (RuntimeError: The actor died unexpectedly); once more"
    assert told == [("warning", warning)]
    assert starting.failed is None
    assert [timing.step for timing in starting.timings()] == ["serve"]


async def test_what_fails_again_is_an_error_of_ours_that_names_the_step(starting):
    async def work():
        raise RuntimeError("no such thing")

    with pytest.raises(
        WorkerStartFailed, match="step serve: Ray Serve and its proxy did not come up: RuntimeError"
    ):
        await starting.run(TWICE, work, nothing)
    assert starting.failed is TWICE


async def test_an_error_of_ours_is_not_tried_again_and_stays_what_it_is(starting):
    calls = []

    async def work():
        calls.append(1)
        raise ConfigError("not so")

    with pytest.raises(ConfigError, match="not so"):
        await starting.run(TWICE, work, nothing)
    assert len(calls) == 1


async def test_a_step_ends_when_its_time_is_up_and_says_which_time(told):
    starting = Starting(0.01, lambda step, text: told.append(text))
    with pytest.raises(
        WorkerStartFailed, match=r"step pool: warm workers .* within 0.01 s \(init_timeout_s\)"
    ):
        await starting.run(ONCE, asyncio.Event().wait)


async def test_a_start_that_is_told_to_end_waits_for_what_it_is_about_to_start():
    """Else a Ray that comes up a moment later would be nobody's."""
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def start_ray():
        begun.set()
        assert go.wait(60)
        ended.set()

    starting = asyncio.ensure_future(in_thread(start_ray))
    await asyncio.to_thread(begun.wait, 60)
    starting.cancel()
    asyncio.get_running_loop().call_soon(go.set)
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert ended.is_set()


def test_what_failed_is_said_in_one_line():
    assert said_by(TimeoutError()) == ""
    assert said_by(RuntimeError("")) == "RuntimeError: without a word"
    assert said_by(RuntimeError("a\n\n  b  \n")) == "RuntimeError: b"


def test_the_ends_of_ray_s_logs_are_kept_those_of_the_step_first(tmp_path):
    logs = tmp_path / "session" / "logs"
    (logs / "serve").mkdir(parents=True)
    (logs / "raylet.out").write_text("x" * 100_000 + "last of raylet")
    (logs / "serve" / "proxy.log").write_text("no proxy \ud83d".encode("utf-8", "replace").decode())
    (logs / "empty.err").touch()
    kept = tmp_path / "start_failed.log"
    assert keep_logs(tmp_path / "session", kept, TWICE)
    text = kept.read_text()
    assert text.index("serve/proxy.log") < text.index("raylet.out")
    assert "last of raylet" in text
    assert len(text) < 40_000
    assert "empty" not in text
    assert kept.stat().st_mode & 0o777 == 0o600
    assert not keep_logs(tmp_path / "none", tmp_path / "other", ONCE)
    assert not (tmp_path / "other").exists()


async def test_replicas_that_never_come_fail_the_start_when_its_time_is_up(monkeypatch):
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    from dspool_serve.ingress import applications
    from dspool_serve.ingress.service import Service
    from dspool_serve.ingress.spreading import spread_of

    application = SimpleNamespace(message="it broke")
    monkeypatch.setattr(
        serve, "status", lambda: SimpleNamespace(applications={"dspool-default": application})
    )
    monkeypatch.setattr(applications, "_begin", lambda app, name: None)
    service = Service(PoolConfig(state_dir="/nowhere"))
    service._spread = spread_of(service.config, nodes=1, has_tokens=False)
    application.status = ApplicationStatus.DEPLOYING
    with pytest.raises(WorkerStartFailed, match=r"step http: .* did not come up within 0\.05 s"):
        await Starting(0.05, lambda step, text: None).run(HTTP, service._deploy)
    application.status = ApplicationStatus.DEPLOY_FAILED
    with pytest.raises(WorkerStartFailed, match="it broke"):
        await Starting(60.0, lambda step, text: None).run(HTTP, service._deploy)
    application.status = ApplicationStatus.RUNNING
    await Starting(60.0, lambda step, text: None).run(HTTP, service._deploy)
