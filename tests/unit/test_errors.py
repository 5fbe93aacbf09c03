"""Every error crosses processes unchanged: pickle inside Ray, a plain dict on the wire."""

import asyncio
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from dspool import errors
from dspool.errors import NotAllowed, Outcome, PoolError, ProgramError, from_wire, is_cancellation
from dspool.programs.models.errors import translate

DETAILS = {"key": "pool_size", "value": 9, "retry_after_s": 0.25, "found": ["a", {"b": None}]}


def tree(kind: type[PoolError]) -> list[type[PoolError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


ALL = [kind for kind in tree(PoolError) if kind.__module__ == errors.__name__]
every_error = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@every_error
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickle(kind, protocol):
    copy = pickle.loads(pickle.dumps(kind("it broke", **DETAILS), protocol=protocol))
    assert type(copy) is kind
    assert (copy.message, copy.details, str(copy)) == ("it broke", DETAILS, "it broke")


@every_error
def test_an_error_survives_the_wire(kind):
    sent = json.loads(json.dumps(kind("it broke", **DETAILS).to_wire()))
    copy = from_wire(sent)
    assert type(copy) is kind
    assert (copy.message, copy.details) == ("it broke", DETAILS)


@every_error
def test_an_error_without_details_survives_both(kind):
    for copy in (pickle.loads(pickle.dumps(kind("it broke"))), from_wire(kind("it broke").to_wire())):
        assert type(copy) is kind
        assert copy.details == {}


@every_error
def test_an_error_has_a_code_and_a_known_outcome(kind):
    assert re.fullmatch(r"[a-z_]+", kind.code)
    assert kind.outcome in get_args(Outcome)


def test_no_two_errors_share_a_code():
    codes = [kind.code for kind in ALL]
    assert len(codes) == len(set(codes))


def test_the_drawing_shows_every_error_and_its_parent():
    drawing = (Path(errors.__file__).read_text()).split('"""')[1]
    stack: list[str] = []
    drawn = {}
    for line in drawing.splitlines():
        found = re.match(r"^((?:│   |    )*)(?:├── |└── )?([A-Z]\w+)", line)
        if not found or found.group(2) not in {kind.__name__ for kind in ALL}:
            continue
        depth = 0 if line.startswith("PoolError") else len(found.group(1)) // 4 + 1
        stack[depth:] = [found.group(2)]
        drawn[found.group(2)] = stack[depth - 1] if depth else None
    assert drawn == {kind.__name__: kind.__base__.__name__ if kind is not PoolError else None for kind in ALL}


def test_details_read_as_attributes_and_missing_ones_raise():
    error = errors.QueueFull("full", retry_after_s=0.5)
    assert error.retry_after_s == 0.5
    with pytest.raises(AttributeError):
        _ = error.status


def test_an_unknown_code_becomes_a_plain_pool_error_that_has_it():
    copy = from_wire({"code": "from_the_future", "message": "hello", "details": {"a": 1}})
    for one in (copy, pickle.loads(pickle.dumps(copy)), from_wire(copy.to_wire())):
        assert type(one) is PoolError
        assert (one.code, one.message, one.details) == ("from_the_future", "hello", {"a": 1})


def test_who_is_only_a_client_knows_the_errors_of_a_repeated_request():
    # In a process of its own: what serves defines more errors.
    program = (
        "import sys; from dspool.errors import from_wire; import dspool.remote.pool;"
        "assert 'dspool_serve' not in sys.modules;"
        "print(*[type(from_wire({'code': code})).__name__ for code in sys.argv[1:]])"
    )
    codes = (
        "idempotency_in_progress",
        "idempotency_outcome_unknown",
        "idempotency_key_reused",
        "ingress_failed",
    )
    said = subprocess.run(
        [sys.executable, "-c", program, *codes], capture_output=True, text=True, check=True, timeout=120
    )
    assert said.stdout.split() == ["InProgress", "OutcomeUnknown", "KeyReused", "IngressFailed"]


def test_a_damaged_wire_dict_still_becomes_an_error():
    assert type(from_wire({})) is PoolError
    assert from_wire({"code": "cancelled", "details": None}).details == {}


class Faceless(BaseException):
    """Hurts whoever looks at it."""

    @property
    def __class__(self) -> Any:
        raise KeyboardInterrupt("secret")

    __traceback__ = __cause__ = property(lambda self: sys.exit("secret"))  # type: ignore[assignment]
    __str__ = __repr__ = __class__.fget  # type: ignore[assignment]


@pytest.mark.parametrize("name", ["Faceless", "x" * 10_000])
def test_what_a_program_raised_is_named_without_asking_it(name):
    try:
        raise (Faceless if name == "Faceless" else type(name, (BaseException,), {}))
    except BaseException as raised:
        for error in (ProgramError.of(raised), translate(raised)):
            assert re.fullmatch(rf"the program raised {name[:200]} at {__name__}:\d+", error.message)
            assert (type(error), error.details["exception"]) == (ProgramError, name[:200])


def test_an_error_of_ours_that_a_program_raises_says_what_it_says_but_not_one_that_it_derives():
    class Derived(ProgramError):
        pass

    ours = NotAllowed("no")
    assert translate(ours) is ours
    assert translate(Derived("secret")).message == "the program raised Derived at an unknown place"


async def test_a_cancellation_is_told_from_a_cancelled_error_that_somebody_raised():
    raised, told = asyncio.CancelledError(), []
    assert not is_cancellation(raised)
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError as cancelled:
        told = [is_cancellation(cancelled), is_cancellation(ValueError())]
        task.uncancel()
    assert told == [True, False]
    assert not is_cancellation(raised)
