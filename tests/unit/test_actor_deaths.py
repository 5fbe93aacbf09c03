"""What is said of an actor that is gone: a short sentence, not Ray's report."""

from __future__ import annotations

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from dspool.runtime.cluster import cause

DEAD = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
GUESSES = (
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the "
    "process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the "
    "worker crashed unexpectedly due to SIGSEGV or another unexpected error."
)
DIED = "its process ended"


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (DEAD + GUESSES, DIED),
        (DEAD + "Worker exits unexpectedly. Worker exits with an exit code 4.", f"{DIED} (exit code 4)"),
        (DEAD + "Worker was killed by SIGKILL.", f"{DIED} (SIGKILL)"),
        (DEAD + "Task was killed due to the node running low on memory.", f"{DIED} (running low on memory)"),
        ("The actor is dead because it was killed by `ray.kill`.", "it was killed by `ray.kill`"),
        ("The actor is dead because its node has died. Node Id: 47 ...", "its node has died"),
    ],
)
def test_an_actor_that_died_is_one_short_sentence(report, said):
    context = ActorDiedErrorContext(
        actor_id=b"0" * 16, class_name="WorkerActor", pid=7, error_message=report, never_started=True
    )
    assert cause(ActorDiedError(context)) == said


def test_what_a_constructor_raised_is_said_as_it_is():
    report = 'The actor died because of an error raised in its creation task, ray::A()\n  File "a.py"\nValueError: no'
    assert cause(RayActorError(error_msg=report)) == "ValueError: no"
    assert cause(RayActorError(error_msg=f"{report}{'o' * 400}")).endswith("ooo...")


def test_an_actor_that_cannot_be_reached_is_said_with_what_is_known():
    assert cause(ActorUnavailableError("no route", b"0" * 16)).startswith(
        "ActorUnavailableError: The actor 3030"
    )
