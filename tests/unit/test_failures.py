"""What callers, and the log, learn of an operation that failed."""

from __future__ import annotations

import asyncio
import io
import logging
from typing import Any

import pytest
from http_doubles import FakePool, assert_problem, client_of
from test_client import Hold, until
from test_http_security import World

from dspool.cli.output import Output
from dspool.client.client import Client
from dspool.config import PoolConfig
from dspool.errors import DeadlineExceeded, ProgramError, QueueFull, UnknownProgram
from dspool.messages import Deployment, ExecuteCode, ExecuteProgram, StreamProgram
from dspool.programs.sessions.host import Session, SessionHost
from dspool.telemetry import logs
from dspool.testing.host import LoopbackPool, failing
from dspool.worker.worker import Worker
from dspool_serve.access.callers import tells_errors

QUESTION = "Where did my aunt Plumtree live?"


def config(**more: Any) -> PoolConfig:
    return PoolConfig(name="t", allowed_imports=("failing_programs",), **more)


@pytest.fixture
def written():
    stream = io.StringIO()

    def begin(**telemetry: Any) -> io.StringIO:
        logs.configure(config(telemetry=telemetry), worker="w0", stream=stream)
        return stream

    yield begin
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logs._OwnHandler):
            logging.getLogger().removeHandler(handler)


async def failure_of(program: str, **telemetry: Any) -> ProgramError:
    made = config(telemetry=telemetry)
    async with LoopbackPool(made) as pool:
        worker = Worker("w0", 0, made, pool.secret, pool.store, session_host=SessionHost(made))
        pool.workers["w0"] = worker
        pool._members["w0"] = await worker.describe()
        pool.publish()
        await worker.deploy(Deployment("p", 1, import_path=f"failing_programs:{program}"))
        client = await pool.start_client()
        with pytest.raises(ProgramError) as failed:
            await client.run(ExecuteProgram("p", {"question": QUESTION}), operation_id="op-1")
        return failed.value


@pytest.mark.parametrize("program", ["Blocking", "Awaiting"])
async def test_the_caller_gets_the_authors_words_and_the_log_the_traceback_without_what_the_caller_sent(
    program, written
):
    stream = written()
    failed = await failure_of(program)
    assert failed.text == f"bad question {QUESTION[:20]!r}, and 'Pigs' again: {QUESTION}"
    assert str(failed) == f"{failed.message}: {failed.text}"
    assert (failed.operation_id, failed.exception) == ("op-1", "ValueError")
    assert failed.at.startswith("failing_programs:")
    text = stream.getvalue()
    assert "operation_id=op-1" in text
    assert '  |     raise ValueError(f"bad question' in text
    assert "  | ValueError: bad question '...', and 'Pigs' again: ..." in text
    assert "Plumtree" not in text


async def test_nobody_is_told_where_nobody_is_to_be_but_the_log_is(written):
    stream = written()
    assert "text" not in (await failure_of("Awaiting", error_messages="never")).details
    assert "ValueError: bad question" in stream.getvalue()


async def test_with_content_captured_the_log_has_the_whole_traceback(written):
    stream = written(capture_content=True)
    await failure_of("Awaiting", capture_content=True)
    assert f"again: {QUESTION}" in stream.getvalue()


async def streamed(client: Client, command: Any, **options: Any) -> None:
    async for _ in client.stream(command, **options):
        pass


async def test_every_error_of_an_operation_has_its_id():
    made = config(max_queue=1, slots_per_worker=1)
    async with LoopbackPool(made) as pool:
        hold = Hold(pool)
        pool.programs["fails"] = failing(ProgramError("no", operation_id="of another"))
        await pool.start_worker()
        client = await pool.start_client()
        first = hold.call(client)
        await until(lambda: hold.started)

        def fails(program: str, id: str, **options: Any) -> Any:
            return client.run(ExecuteProgram(program, {}), operation_id=id, **options)

        ended = await asyncio.gather(
            fails("fails", "1", timeout_s=0.05), fails("fails", "2"), return_exceptions=True
        )
        hold.gate.set()
        await first
        ended += await asyncio.gather(fails("fails", "3"), return_exceptions=True)
        ended += await asyncio.gather(fails("nobody", "4"), return_exceptions=True)
        stream = streamed(client, StreamProgram("fails", {}), operation_id="5")
        ended += await asyncio.gather(stream, return_exceptions=True)
        kinds = [DeadlineExceeded, QueueFull, ProgramError, UnknownProgram, ProgramError]
        assert [type(error) for error in ended] == kinds
        assert [error.operation_id for error in ended] == ["1", "2", "3", "4", "5"]


def test_callers_of_a_service_on_loopback_are_told_what_programs_say_and_others_by_setting():
    def told(host: str, error_messages: str = "loopback", **service: Any) -> bool:
        return tells_errors(
            config(service={"host": host, **service}, telemetry={"error_messages": error_messages})
        )

    assert told("127.0.0.1")
    assert told("localhost")
    assert not told("0.0.0.0")
    assert not told("127.0.0.1", trusted_proxies=("10.0.0.0/8",))
    assert told("0.0.0.0", "always")
    assert not told("127.0.0.1", "never")


FAILED = {"exception": "ValueError", "at": "shop.basic:56", "text": "no line items", "operation_id": "op-1"}
QA = "/v1/pools/default/programs/qa"


async def test_an_answer_over_http_has_the_authors_words_and_the_operations_id():
    pool = FakePool()
    pool.fail_with = ProgramError("the program raised ValueError at shop.basic:56", **FAILED)
    async with client_of(pool) as http:
        problem = assert_problem(await http.post(f"{QA}/execute", json={"inputs": {}}), 500, "program_error")
        stream = await http.post(f"{QA}/stream", json={"inputs": {}})
        batch = (await http.post(f"{QA}/batch", json={"inputs": [{}]})).json()["items"][0]["problem"]
    assert problem["detail"] == "the program raised ValueError at shop.basic:56: no line items"
    assert (problem["operation_id"], problem["details"]) == ("op-1", FAILED)
    assert (batch["detail"], batch["operation_id"]) == (problem["detail"], "op-1")
    assert '"operation_id":"op-1"' in stream.text


async def test_with_tokens_and_beyond_loopback_only_admins_are_told(tmp_path):
    world = World(tmp_path)
    world.pool.config = config(service={"host": "0.0.0.0"})
    world.pool.fail_with = ProgramError("the program raised ValueError at shop.basic:56", **FAILED)
    for who, told in (("ada", False), ("root", True)):
        async with world.http(who) as http:
            problem = (await http.post(f"{QA}/execute", json={"inputs": {}})).json()
        assert ("no line items" in str(problem)) is told
        assert problem["operation_id"] == "op-1"
        assert problem["details"]["at"] == "shop.basic:56"


async def test_logs_are_asked_over_http_by_operation_worker_and_time():
    pool = FakePool()
    async with client_of(pool) as http:
        query = {"operation": "op-1", "worker": "w7", "after": 5.5, "limit": 10}
        page = (await http.get("/v1/pools/default/logs", params=query)).json()
        for wrong in (
            {"limit": 0},
            {"limit": 1001},
            {"after": -1},
            {"nobody": "x"},
            {"operation": "x" * 201},
        ):
            assert_problem(await http.get("/v1/pools/default/logs", params=wrong), 422, "invalid_request")
    assert pool.asked == [query]
    assert (page["next"], page["lines"][0]["operation_id"], page["lines"][0]["worker"]) == (6.5, "op-1", "w7")


def test_code_that_a_caller_sends_says_what_it_raised_to_that_caller():
    host = SessionHost(PoolConfig(name="t", allow_execute_code=True))
    with pytest.raises(ProgramError) as failed:
        host.run_inline(ExecuteCode("x = 'abc'\nint(x)"), Session(host, "s"))
    assert (failed.value.line, failed.value.text) == (2, "invalid literal for int() with base 10: 'abc'")
    assert failed.value.message == "the code raised ValueError in line 2"


def test_the_command_line_says_what_the_program_said_and_which_operation_it_was(capsys):
    failed = ProgramError("the program raised ValueError at shop.basic:56", **FAILED)
    Output().error(failed)
    said = "Error: the program raised ValueError at shop.basic:56: no line items (operation op-1)\n"
    assert capsys.readouterr().err == said
