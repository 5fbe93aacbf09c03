"""What callers do to a pool, in one table: a pool in the process of a test must give what a real one gives.

`tests/unit/test_local_pool.py` runs it on a local pool, `tests/integration/test_local_and_real_pool.py` on both.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from dspool.errors import DeadlineExceeded, PoolError
from dspool.messages import (
    JSON,
    Deployment,
    ExecuteProgram,
    Result,
    SessionInfo,
    SetVariable,
    StreamEvent,
    StreamProgram,
)

QUESTION = {"context": "Paris is the capital of France.", "question": "What is the capital of France?"}
CONFIG: dict[str, Any] = {
    "programs": {
        "qa": {"spec": {"signature": "context, question -> answer"}},
        "typed": {"spec": {"signature": "text -> number: int, words: list[str]"}},
        "own": {"import_path": "shop_programs:Answer"},
        "blocking": {"import_path": "shop_programs:Blocking"},
        "odd": {"import_path": "shop_programs:Odd"},
        "slow": {"import_path": "shop_programs:Slow"},
    },
    "allowed_imports": ("shop_programs",),
    "pool_size": 1,
    "min_pool_size": 1,
    "max_pool_size": 2,
    "slots_per_worker": 2,
    "max_queue": 2,
    "telemetry": {"sampling": 0.0},
}
"""Of the pool that the table is for."""


class Call(NamedTuple):
    name: str
    do: Callable[[Any], Awaitable[Any]]


def execute(name: str, program: str, timeout_s: float | None = None, **inputs: JSON) -> Call:
    async def do(pool: Any) -> Any:
        return await pool.execute(program, timeout_s=timeout_s, **inputs)

    return Call(name, do)


def deploy(name: str, **deployment: Any) -> Call:
    async def do(pool: Any) -> Any:
        done = await pool.deploy(Deployment(**{"program": "qa", "version": 0, **deployment}), canary_s=0.0)
        return done.program, done.version, (await pool.execute("qa", **QUESTION)).program_version

    return Call(name, do)


def session(name: str, do: Callable[[Any], Awaitable[Any]]) -> Call:
    async def run(pool: Any) -> Any:
        return await do(pool.session(f"s-{name.replace(' ', '-')}"))

    return Call(name, run)


async def _steps(*steps: Awaitable[Any]) -> list[Any]:
    return [await outcome_of(step) for step in steps]


async def _queue_full(pool: Any) -> Any:
    done = await asyncio.gather(*(outcome_of(pool.execute("odd", how="nap")) for _ in range(6)))
    return sorted(map(str, done))


async def _stream(events: AsyncIterator[StreamEvent | Result]) -> Any:
    return [plain(event) async for event in events]


async def _paused(pool: Any) -> Any:
    await pool.pause()
    try:
        async with asyncio.timeout(60):
            while not pool.client.membership.paused:  # noqa: ASYNC110 - the client hears of it by itself
                await asyncio.sleep(0.01)
        return await outcome_of(pool.execute("qa", **QUESTION))
    finally:
        await pool.resume()
        async with asyncio.timeout(60):
            while pool.client.membership.paused:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def _module(pool: Any) -> Any:
    prediction = await pool.as_module("qa").acall(**QUESTION)
    return dict(prediction)


async def _cancelled(pool: Any) -> Any:
    task = asyncio.ensure_future(pool.execute("odd", how="wait"))
    await asyncio.sleep(0)
    task.cancel()
    ended = (await asyncio.gather(task, return_exceptions=True))[0]
    return type(ended).__name__, plain(await pool.execute("odd", how="fine"))


TABLE: tuple[Call, ...] = (
    execute("an answer", "qa", **QUESTION),
    execute("typed answers", "typed", text="12 green apples"),
    execute("an own module", "own", **QUESTION),
    execute("a blocking module", "blocking", **QUESTION),
    execute("an input is missing", "qa", context="Paris."),
    execute("an input is unknown", "qa", **QUESTION, colour="red"),
    execute("an input has another type", "qa", context=1, question=["?"]),
    execute("an input of an own module is missing", "own", context="Paris."),
    execute("an input of an own module is unknown", "own", **QUESTION, colour="red"),
    execute("an unknown program", "nothing", question="?"),
    execute("a program raises", "odd", how="value error"),
    execute("a program misses a key", "odd", how="key error"),
    execute("a program exits", "odd", how="exit"),
    execute("a program is interrupted", "odd", how="interrupt"),
    execute("a program returns a number", "odd", how="number"),
    execute("a program returns an object", "odd", how="object"),
    execute("a program returns nothing", "odd", how="nothing"),
    execute("a deadline", "odd", timeout_s=0.3, how="wait"),
    execute("a deadline of a thread", "slow", timeout_s=0.3, seconds=0.6),
    execute("a deadline that is none", "qa", timeout_s=-1.0, **QUESTION),
    Call("the queue is full", _queue_full),
    Call("a caller goes away", _cancelled),
    Call("many inputs", lambda pool: pool.map("qa", [QUESTION, {"wrong": 1}], return_errors=True)),
    Call("many inputs, one of them wrong", lambda pool: pool.map("qa", [QUESTION, {"wrong": 1}])),
    Call("a stream", lambda pool: _stream(pool.stream(StreamProgram("own", QUESTION)))),
    Call("a stream that fails", lambda pool: _stream(pool.stream(StreamProgram("odd", {"how": "exit"})))),
    Call("a stream of nothing", lambda pool: _stream(pool.stream(StreamProgram("nothing", {})))),
    Call("a module of DSPy", _module),
    session("a variable", lambda one: _steps(one.set_variable("x", {"a": [1]}), one.get_variable("x"))),
    session("no such variable", lambda one: _steps(one.set_variable("x", 1), one.get_variable("y"))),
    session("no such session", lambda one: one.get_variable("x")),
    session(
        "programs",
        lambda one: _steps(
            one.create_program("reader", "context, question -> answer"),
            one.execute("reader", **QUESTION),
            one.create_program("reader", "context, question -> answer"),
            one.execute("qa", **QUESTION),
            one.execute("nothing"),
            one.programs(),
            one.delete_program("reader"),
            one.execute("reader", **QUESTION),
        ),
    ),
    session("a bad signature", lambda one: one.create_program("p", "this is no signature")),
    session("a forbidden import", lambda one: one.create_program("p", import_path="os:system")),
    session("a private import", lambda one: one.create_program("p", import_path="shop_programs:_Hidden")),
    session("no code", lambda one: _steps(one.set_variable("x", 1), one.execute_code("1 + 1"))),
    session("no such profile", lambda one: _steps(one.set_variable("x", 1), one.configure_lm("gpt"))),
    session("its end", lambda one: _steps(one.set_variable("x", 1), one.end(), one.variables())),
    Call("too long a session", lambda pool: pool.run(SetVariable("x", 1), session="s" * 300)),
    Call(
        "a session is there already", lambda pool: _steps(pool.create_session("a"), pool.create_session("a"))
    ),
    Call("an end of nothing", lambda pool: pool.end_session("nobody")),
    Call("no version of this number", lambda pool: pool.run(ExecuteProgram("qa", QUESTION, version=9))),
    deploy("the same again", spec={"signature": "context, question -> answer"}),
    deploy("a second version", spec={"signature": "context, question -> answer", "instructions": "Briefly."}),
    deploy("no source", spec=None),
    deploy("two sources", spec={"signature": "a -> b"}, import_path="shop_programs:Answer"),
    deploy("a spec that is none", spec={"signature": "nonsense"}),
    deploy("an import that is forbidden", import_path="os:system"),
    deploy("an import that is not there", import_path="shop_programs:Missing"),
    deploy("arguments that do not fit", import_path="shop_programs:Answer", kwargs={"colour": "red"}),
    deploy("a constructor that raises", import_path="shop_programs:Broken"),
    deploy("an own module in its place", import_path="shop_programs:Answer", kwargs={"prefix": "It is "}),
    Call("back to a version", lambda pool: pool.rollback("qa", 1)),
    Call("back to no version", lambda pool: pool.rollback("qa", 99)),
    Call("a size beyond its bounds", lambda pool: pool.resize(9)),
    Call("a worker that is not there", lambda pool: pool.drain("default-w9-abcdef")),
    Call("a pause", _paused),
    Call("an answer after all that", lambda pool: pool.execute("qa", **QUESTION)),
)


async def outcomes(pool: Any) -> dict[str, Any]:
    """What each call of the table came to, by its name."""
    return {call.name: await outcome_of(call.do(pool)) for call in TABLE}


async def outcome_of(call: Awaitable[Any]) -> Any:
    try:
        return plain(await call)
    except PoolError as failed:
        return plain(failed)


def plain(value: Any) -> Any:
    """`value` without what differs from run to run: ids, times."""
    if isinstance(value, DeadlineExceeded):
        return type(value).__name__  # client and worker both watch it, and either may be first to say so
    if isinstance(value, PoolError):
        details = {key: plain(part) for key, part in sorted(value.details.items()) if key not in _VARYING}
        return type(value).__name__, _text(str(value)), details
    if isinstance(value, Result):
        return "Result", plain(value.value), value.program_version, value.offline, plain(value.usage)
    if isinstance(value, StreamEvent | Deployment | SessionInfo):
        return type(value).__name__, plain({key: getattr(value, key) for key in value.__struct_fields__})
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in _VARYING}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return _text(value) if isinstance(value, str) else value


_VARYING = {
    "operation_id",
    "operation",
    "worker",
    "owner",
    "created_at",
    "last_used_at",
    "made_at",
    "retry_after_s",
    "id",
    "at",
}
_IDS = re.compile(r"\b(?:[0-9a-f]{12}-\d+|[a-z0-9]+-[wo]\d+-[0-9a-f]{6})\b")
_SECONDS = re.compile(r"\b\d+\.\d+ s\b")


def _text(text: str) -> str:
    return _SECONDS.sub("N s", _IDS.sub("ID", text))
