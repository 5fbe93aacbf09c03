"""What looking costs others: one costly read at a time, a short line for each principal, one answer for equal ones."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
from functools import partial

import httpx
import pytest

from dspool.errors import QueueFull, UnknownWorker
from dspool.runtime import cluster
from dspool.runtime.actors import PoolActors
from dspool.telemetry.trace_tree import MAX_SPANS, drawn, render
from dspool_console.dashboard import report as report_module
from dspool_console.dashboard import traces, whatif
from dspool_console.dashboard.traces import OperationLog, waterfall
from dspool_serve.api import tables
from dspool_serve.api.common import or_none
from dspool_serve.costly import SWITCH_S, WAITING, CostlyReads, in_thread
from dspool_serve.fresh import Fresh
from tests.dashboard_demo import application, tokens_for
from tests.simulated_pool import SimulatedPool
from tests.unit.http_doubles import until

POOL = "/v1/pools/default"
DAY = 86_400


# --- turns ---


class Works:
    """Pieces of work that end when they are told to."""

    def __init__(self, reads: CostlyReads) -> None:
        self.reads = reads
        self.begun: list[str] = []
        self.gates: list[asyncio.Event] = []

    def ask(self, who: str) -> asyncio.Task[str]:
        async def work() -> str:
            gate = asyncio.Event()
            self.begun.append(who)
            self.gates.append(gate)
            await gate.wait()
            return who

        return asyncio.ensure_future(self.reads.run(who, work))


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def works():
    return Works(CostlyReads())


async def test_one_read_runs_at_a_time_and_principals_take_turns(works):
    asked = [works.ask(who) for who in ("eve", "eve", "eve", "ada")]
    for number in range(4):
        await settled()
        assert len(works.begun) == number + 1
        works.gates[number].set()
    assert await asyncio.gather(*asked) == ["eve", "eve", "eve", "ada"]
    # Ada came last and waits for one read of eve, not for three.
    assert works.begun == ["eve", "ada", "eve", "eve"]


async def test_one_too_many_of_one_principal_is_refused_at_once_and_others_are_not(works):
    asked = [works.ask("eve") for _ in range(WAITING + 1)]
    await settled()
    for _ in range(3):
        with pytest.raises(QueueFull) as refused:
            await works.ask("eve")
        assert refused.value.retry_after_s > 0
    asked.append(works.ask("ada"))
    await settled()
    for number in range(len(asked)):
        works.gates[number].set()
        await settled()
    assert sorted(await asyncio.gather(*asked)) == ["ada", *["eve"] * (WAITING + 1)]


async def test_no_number_of_principals_makes_a_line_without_end():
    works = Works(CostlyReads(max_in_all=3))
    asked = [works.ask(f"p{number}") for number in range(4)]
    await settled()
    with pytest.raises(QueueFull):
        await works.ask("another")
    for task in asked:
        task.cancel()


async def test_a_read_whose_caller_hangs_up_keeps_its_turn_until_its_thread_has_ended():
    reads, begun, end = CostlyReads(), threading.Event(), threading.Event()
    ended: list[str] = []

    def work() -> None:
        begun.set()
        end.wait(60)
        ended.append("first")

    first = asyncio.ensure_future(reads.run("eve", lambda: in_thread(work)))
    await asyncio.to_thread(begun.wait, 60)
    first.cancel()
    second = asyncio.ensure_future(reads.run("ada", lambda: in_thread(lambda: ended.append("second"))))
    await settled()
    assert ended == []
    end.set()
    await second
    assert ended == ["first", "second"]


async def test_who_hangs_up_and_asks_again_has_not_two_reads_at_a_time(works):
    first = works.ask("eve")
    await settled()
    first.cancel()
    second = works.ask("eve")
    await settled()
    assert works.begun == ["eve"]
    works.gates[0].set()
    await settled()
    works.gates[1].set()
    assert await second == "eve"


async def test_who_hangs_up_while_waiting_leaves_the_line(works):
    first, second, third = works.ask("eve"), works.ask("ada"), works.ask("bob")
    await settled()
    second.cancel()
    works.gates[0].set()
    await settled()
    assert works.begun == ["eve", "bob"]
    works.gates[1].set()
    assert (await first, await third) == ("eve", "bob")
    assert works.reads._queue.places == works.reads._queue.waiting == 0


async def test_a_read_that_fails_gives_its_turn_back_also_when_nobody_hears_of_it(works, caplog):
    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError

    with pytest.raises(LookupError):
        await works.reads.run("eve", fails)
    asked = asyncio.ensure_future(works.reads.run("eve", fails))
    await asyncio.sleep(0)
    asked.cancel()
    await settled()
    gc.collect()
    assert works.reads._queue.places == 0
    assert "never retrieved" not in caplog.text


async def test_a_thread_that_computes_gives_the_gil_back_ten_times_as_often():
    before = sys.getswitchinterval()
    assert await in_thread(sys.getswitchinterval) == pytest.approx(SWITCH_S)
    assert sys.getswitchinterval() == pytest.approx(before)


# --- over HTTP ---


class House:
    """The service with a day of history, and the readers eve and ada."""

    def __init__(self, tmp_path) -> None:
        self.pool = SimulatedPool(workers=2, history_s=300, state_dir=tmp_path)
        self.tokens, source = tokens_for(eve="reader", ada="reader")
        self.app = application(self.pool, tokens=source)
        self.gate, self.begun = threading.Event(), threading.Event()
        self.running = 0
        self.most = 0
        self.calls = 0
        self._lock = threading.Lock()

    async def get(self, who: str, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        headers = {"authorization": f"Bearer {self.tokens[who]}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        ) as http:
            return await http.get(POOL + path)

    def slowly(self, answer):
        """In place of a costly function: waits for the gate, and counts how many do at once."""

        def work(*_args, **_kwargs):
            with self._lock:
                self.calls += 1
                self.running += 1
                self.most = max(self.most, self.running)
            self.begun.set()
            self.gate.wait(60)
            with self._lock:
                self.running -= 1
            return answer

        return work


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    house.gate.set()


def costly(house, monkeypatch) -> list[str]:
    """Paths that cost much, no two of them equal, made slow."""
    monkeypatch.setattr(report_module, "report", house.slowly("<html>"))
    monkeypatch.setattr(tables, "encode_table", house.slowly(b"{}"))
    monkeypatch.setattr("dspool_console.dashboard.operations.find_trace", house.slowly([]))
    monkeypatch.setattr(whatif.Replay, "whole", house.slowly(whatif.ReplayRun([1], [0.0], [0.0])))
    paths = ["/report?range={}", "/metrics/table?range={}", "/operations/op-{}", "/whatif?range={}"]
    return [path.format(60 + number) for number in range(6) for path in paths]


async def test_all_costly_reads_of_a_process_run_one_at_a_time_and_beyond_a_few_they_are_refused(
    house, monkeypatch
):
    paths = costly(house, monkeypatch)
    asked = [asyncio.ensure_future(house.get("eve", path)) for path in paths]
    refused = []
    for answer in asyncio.as_completed(asked):
        refused.append(await answer)
        if len(refused) == len(paths) - WAITING - 1:
            break
    waiting = [task for task in asked if not task.done()]
    assert {answer.status_code for answer in refused} == {429}
    assert {answer.json()["code"] for answer in refused} == {"queue_full"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    # Another reader, and whoever runs operations, is not affected.
    other = asyncio.ensure_future(house.get("ada", "/report?range=3599"))
    assert (await house.get("ada", "")).status_code == 200
    house.gate.set()
    assert (await other).status_code == 200
    await asyncio.gather(*waiting)
    assert house.most == 1


async def test_six_equal_reports_are_made_once(house, monkeypatch):
    monkeypatch.setattr(report_module, "report", house.slowly("<html>"))
    asked = [asyncio.ensure_future(house.get(who, f"/report?range={DAY}")) for who in ("eve", "ada") * 3]
    await asyncio.to_thread(house.begun.wait, 60)
    house.gate.set()
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
    assert (await house.get("eve", f"/report?range={DAY}")).status_code == 200
    assert house.calls == 1


@pytest.mark.parametrize(
    ("path", "module", "made"),
    [("/report?range={}", report_module, "report"), ("/metrics/table?range={}", tables, "encode_table")],
)
async def test_who_asks_what_another_asked_before_waits_in_their_own_line(
    house, monkeypatch, path, module, made
):
    slowly = house.slowly(b"{}" if module is tables else "<html>")
    monkeypatch.setattr(module, made, slowly)
    eves = [asyncio.ensure_future(house.get("eve", path.format(60 + number))) for number in range(4)]
    await asyncio.to_thread(house.begun.wait, 60)
    ada = asyncio.ensure_future(house.get("ada", path.format(63)))
    await settled()
    made_before = []
    ada.add_done_callback(lambda _: made_before.append(house.calls))
    house.gate.set()
    assert (await ada).status_code == 200
    assert {answer.status_code for answer in await asyncio.gather(*eves)} == {200}
    # The one of eve that ran, ada's own, and perhaps one that began before ada heard of hers.
    assert made_before[0] <= 3
    assert house.calls == 4, "what ada had was made once for both"


async def test_a_table_of_a_fixed_time_is_made_once_for_all_who_ask_within_a_second(house, monkeypatch):
    monkeypatch.setattr(tables, "encode_table", house.slowly(b"{}"))
    house.gate.set()
    path = "/metrics/table?from=1&to=99999999"
    for _ in range(3):
        assert (await house.get("eve", path)).status_code == 200
    assert house.calls == 1


async def test_a_part_that_does_not_answer_costs_a_report_that_part_and_not_the_report(house, monkeypatch):
    async def never(*_args):
        await asyncio.Event().wait()

    monkeypatch.setattr(house.pool, "status", never)
    monkeypatch.setattr(report_module, "or_none", partial(or_none, seconds=0.01))
    answer = await house.get("eve", "/report?range=300")
    assert answer.status_code == 200
    assert "The supervisor did not answer" in answer.text


async def test_an_answer_is_let_go_when_it_is_too_old_and_not_only_when_others_take_its_place():
    fresh = Fresh(0.001)

    async def make() -> bytes:
        return b"large"

    assert await fresh.get("key", make) == b"large"
    await until(lambda: not fresh._made)


# --- traces of any size ---


def span(number: int, parent: int | None, **attributes):
    return {
        "trace_id": "a" * 32, "span_id": f"{number:016x}", "parent_id": None if parent is None else f"{parent:016x}",
        "name": f"operation {number}", "start_ns": number, "end_ns": number + 1, "ok": True,
        "attributes": attributes, "resource": {},
    }  # fmt: skip


def test_a_trace_of_any_depth_is_drawn_without_recursion():
    deep = [span(number, number - 1 if number else None) for number in range(MAX_SPANS)]
    found = waterfall(deep, shows=lambda about: False)
    assert [row.depth for row in found.spans] == list(range(MAX_SPANS))
    # Branches do not grow with the depth: the text would with its square.
    assert len(render(deep)) < MAX_SPANS * 300


def test_of_a_trace_of_any_number_of_spans_the_first_are_drawn_and_the_rest_is_counted():
    wide = [span(number, 0 if number else None) for number in range(MAX_SPANS + 7)]
    found = waterfall(wide, shows=lambda about: False)
    assert (len(found.spans), found.more) == (MAX_SPANS, 7)
    assert render(wide).endswith("and 7 more spans")


def test_spans_are_drawn_in_the_order_of_a_tree():
    spans = [span(0, None), span(1, 0), span(2, 0), span(3, 1), span(9, 8)]
    rows = [(node.span["name"], node.depth, node.branches) for node in drawn(spans)]
    assert rows == [
        ("operation 0", 0, ""),
        ("operation 1", 1, "├ "),
        ("operation 3", 2, "│ └ "),
        ("operation 2", 1, "└ "),
        ("operation 9", 0, ""),
    ]


async def test_a_look_at_the_operations_reads_no_more_than_so_much_of_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "READ_BYTES", 3000)
    directory = tmp_path / "traces"
    directory.mkdir()
    for file in range(20):
        row = json.dumps(span(file, None, **{"dspool.pool": "p", "dspool.operation.id": f"op-{file}"})) + "\n"
        (directory / f"client-{file}.jsonl").write_text(row * (1000 // len(row)))
    log = OperationLog("p", tmp_path)
    assert 1 <= len({one.id for one in await log.look()}) <= 4
    # Nor does it remember files that are gone.
    for path in directory.iterdir():
        path.unlink()
    await log.look()
    assert log._places == {}


# --- Ray's control plane ---


async def test_an_actor_is_looked_up_off_the_event_loop(monkeypatch):
    loop_thread = threading.get_ident()
    asked: list[int] = []

    def get_actor(name, namespace=None):
        asked.append(threading.get_ident())
        raise ValueError(name)

    monkeypatch.setattr(cluster.ray, "get_actor", get_actor)
    with pytest.raises(ValueError, match="dspool:p:metrics"):
        await cluster.find_actor("p", "metrics")
    actors = PoolActors("default", None)
    actors.name = "default"
    with pytest.raises(UnknownWorker):
        await actors.worker_memory("default-w0-abcdef")
    assert len(asked) == 2
    assert loop_thread not in asked
