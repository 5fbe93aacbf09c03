"""The audit log: what really happened is in it, and nobody fills the disk, stops the loop or writes lines with it."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import httpx
import pytest

from dspool.core.admission.access import new_token
from dspool.core.admission.denials import OTHERS, Denials, Repeats
from dspool.errors import ConfigError, Conflict, ProgramError
from dspool.tokens import TokenSource, write
from dspool_serve.access.audit import Audit
from dspool_serve.access.audit_file import AuditFile
from dspool_serve.access.security import Security
from dspool_serve.pools import Settings
from tests.security.test_streams_end_with_the_right import DEPLOY, Connection, Lasting
from tests.unit.http_doubles import served, until

POOL = "/v1/pools/default"


class World:
    """A service with an admin and two readers whose audit log is looked at."""

    def __init__(self, tmp_path, *, pool=None, **options):
        self.file, self.now, self.clock = tmp_path / "audit.jsonl", time.time(), 0.0
        self.texts, kept = {}, []
        for number, (name, role) in enumerate({"root": "admin", "rea": "reader", "eve": "reader"}.items()):
            self.texts[name], token = new_token(name, role, chr(65 + number) * 43, f"0000000{number}")
            kept.append(token)
        write(tmp_path / "tokens.yaml", kept)
        self.audit = Audit(self.file, wall=lambda: self.now, clock=lambda: self.clock, **options)
        self.pool = pool or Lasting()
        security = Security(TokenSource(tmp_path / "tokens.yaml"), audit=self.audit)
        self.app = served(
            self.pool, security=security, settings=Settings(heartbeat_s=0.01, execute_code=True)
        )

    def http(self, who, address="192.0.2.1"):
        headers = {"authorization": f"Bearer {self.texts[who]}"}
        transport = httpx.ASGITransport(app=self.app, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    async def open(self, method, path, *headers):
        bearer = (b"authorization", f"Bearer {self.texts['root']}".encode())
        stream = Connection(self.app, method, path, bearer, *headers)
        await stream.begun.wait()
        return stream

    def records(self):
        self.audit.close()
        return [json.loads(line) for line in self.file.read_text().splitlines()]


# --- what anybody can cause -------------------------------------------------------------------------


async def test_denials_that_repeat_are_two_lines(tmp_path):
    world = World(tmp_path)
    async with world.http("rea") as rea:
        for number in range(300):
            path = f"{POOL}/workers/{number}/drain"
            assert (await rea.post(path, headers={"x-request-id": str(number)})).status_code == 403
    first, summed = world.records()
    assert (first["event"], first["path"], first["request_id"]) == ("denied", f"{POOL}/workers/0/drain", "0")
    assert (summed["event"], summed["times"], summed["seconds"]) == ("denied", 299, 60.0)
    assert (summed["principal"], summed["route"]) == ("rea", "/v1/pools/{pool}/workers/{worker}/drain")
    assert "path" not in summed


async def test_each_principal_route_and_address_is_told_by_itself(tmp_path):
    world = World(tmp_path)
    for who, address, verb in (
        ("rea", "192.0.2.1", "pause"),
        ("eve", "192.0.2.1", "pause"),
        ("rea", "192.0.2.2", "pause"),
        ("rea", "192.0.2.1", "resume"),
    ):
        async with world.http(who, address) as http:
            await http.post(f"{POOL}/{verb}")
    assert len(world.records()) == 4


async def test_the_sum_is_written_when_its_minute_is_over(tmp_path):
    world = World(tmp_path)
    async with world.http("rea") as rea:
        for _ in range(3):
            await rea.post(f"{POOL}/pause")
        world.clock = 60.0
        await rea.post(f"{POOL}/resume")
        await world.audit.written()
        await world.audit.written()
        events = [json.loads(line).get("times") for line in world.file.read_text().splitlines()]
    assert sorted(events, key=str) == sorted([None, 2, None], key=str)


async def test_wrong_logins_are_summed_by_address(tmp_path):
    world = World(tmp_path)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=world.app), base_url="http://localhost"
    ) as http:
        for _ in range(25):
            await http.post("/dashboard/login", json={"token": "dsp_no"}, headers={"x-dspool-csrf": "login"})
    records = world.records()
    assert [(one["problem"], one.get("times")) for one in records] == [
        ("unauthenticated", None),
        ("rate_limited", None),
        ("unauthenticated", 19),
        ("rate_limited", 4),
    ]


async def test_pages_of_other_origins_that_try_an_admins_deed_are_summed(tmp_path):
    world = World(tmp_path)
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        for _ in range(10):
            await http.post(f"{POOL}/pause", headers={"origin": "http://evil.example"})
    first, summed = world.records()
    assert (first["event"], first["problem"], first["principal"]) == ("denied", "csrf", "")
    assert summed["times"] == 9


def test_kinds_of_denials_that_are_counted_are_bounded_and_none_is_lost():
    denials = Denials(60.0, remembered=10)
    told = sum(denials.add(number, now=0.0) for number in range(1000))
    assert (told, len(denials)) == (10, 11)
    assert denials.due(now=59.9) == []
    assert denials.due(now=60.0) == [Repeats(OTHERS, 990)]
    assert len(denials) == 0


async def test_a_disk_that_stands_still_holds_neither_the_loop_nor_memory(tmp_path, monkeypatch):
    stands, go = threading.Event(), threading.Event()
    append = AuditFile.append

    def standing(file, lines):
        stands.set()
        go.wait()
        append(file, lines)

    world = World(tmp_path, waiting=50)
    monkeypatch.setattr(AuditFile, "append", standing)
    async with world.http("rea") as rea:
        await rea.post(f"{POOL}/pause")
        await asyncio.to_thread(stands.wait)
        for number in range(200):
            async with world.http("rea", f"192.0.2.{number}") as http:
                assert (await http.post(f"{POOL}/pause")).status_code == 403
    assert world.audit.dropped >= 100
    assert world.audit._waiting.qsize() <= 50
    go.set()
    records = world.records()
    assert sum(one["times"] for one in records if one["event"] == "dropped") == world.audit.dropped
    async with world.http("root") as root:
        assert (await root.get("/v1/audit")).json()["dropped"] == world.audit.dropped


async def test_an_admin_acts_although_the_disk_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr("dspool_serve.access.audit._WRITTEN_S", 0.01)
    go = threading.Event()
    world = World(tmp_path)
    monkeypatch.setattr(AuditFile, "append", lambda file, lines: go.wait())
    async with world.http("root") as root:
        assert (await root.post(f"{POOL}/pause")).status_code == 200
    go.set()


HOSTILE = "\n\r\x00\u2028\u2029\x85\x0b\x0c\x1c\ud800" + '"}{' + "é" * 10_000


@pytest.mark.parametrize("where", ["path", "request_id", "client"])
async def test_nothing_that_is_sent_makes_a_line_or_a_long_one(tmp_path, where):
    world = World(tmp_path)
    path, headers = f"{POOL}/pause", [(b"authorization", f"Bearer {world.texts['rea']}".encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "raw_path": path.encode(),
        "path": path + (HOSTILE if where == "path" else ""),
        "query_string": HOSTILE.encode("utf-8", "replace"),
        "client": (HOSTILE if where == "client" else "192.0.2.1", 1),
    }
    names = (b"x-request-id", b"user-agent", b"referer", b"x-forwarded-for")
    headers += [(name, HOSTILE.encode("utf-8", "replace")) for name in names]

    async def receive():
        return {"type": "http.request", "body": HOSTILE.encode("utf-8", "replace"), "more_body": False}

    sent = []

    async def send(message):
        sent.append(message)

    for _ in range(2):
        await world.app(scope | {"headers": headers}, receive, send)
    assert sent[0]["status"] == 403
    world.audit.close()
    text = world.file.read_bytes().decode("ascii")
    assert len(text.splitlines()) == 2
    assert all(len(line) < 6000 and json.loads(line)["event"] == "denied" for line in text.splitlines())


# --- what really happened ---------------------------------------------------------------------------


async def test_a_deed_is_written_when_its_answer_is_there(tmp_path):
    world = World(tmp_path)
    async with world.http("root") as root:
        for number in range(20):
            await root.post(f"{POOL}/pause")
            assert len(world.file.read_text().splitlines()) == number + 1


async def test_a_deployment_by_events_that_is_refused_is_not_done(tmp_path):
    world = World(tmp_path)
    world.pool.fail_with = Conflict("a deployment is running")
    world.pool.go.set()
    world.pool.stream_deploy = super(Lasting, world.pool).stream_deploy
    stream = await world.open("POST", DEPLOY)
    await stream.task
    assert stream.status == 409
    (record,) = world.records()
    assert (record["event"], record["status"], record["problem"]) == ("failed", 409, "conflict")


async def test_a_deployment_by_events_that_fails_on_its_way_is_not_done(tmp_path):
    world = World(tmp_path)
    world.pool.fail_with = ProgramError("its canary did worse")
    stream = await world.open("POST", DEPLOY)
    assert stream.status == 200
    world.pool.go.set()
    await stream.task
    (record,) = world.records()
    assert (record["event"], record["status"], record["problem"]) == ("failed", 500, "program_error")


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_deployment_by_events_is_done_when_it_is_whoever_listens(tmp_path, leaves):
    world = World(tmp_path)
    stream = await world.open("POST", DEPLOY, (b"idempotency-key", b"k"))
    if leaves:
        await stream.leave()
    await world.audit.written()
    assert world.file.read_text() == ""
    world.pool.go.set()
    await until(lambda: world.pool.ended == 1)
    await asyncio.gather(stream.task, return_exceptions=True)
    await until(lambda: not world.app._security.streams)
    (record,) = world.records()
    assert (record["event"], record["status"], record["path"]) == ("done", 200, DEPLOY)


async def test_the_end_of_a_stream_over_anothers_session_is_written(tmp_path):
    world = World(tmp_path)
    path = f"{POOL}/sessions/ada%2Fs/programs/slow/stream"
    stream = await world.open("POST", path)
    await stream.leave()
    (record,) = world.records()
    assert (record["event"], record["problem"], record["status"]) == ("failed", "cancelled", 499)


async def test_reads_are_not_written_but_for_an_admins_of_anothers_session(tmp_path):
    world = World(tmp_path)
    async with world.http("root") as root:
        for path in ("/v1/pools", POOL, f"{POOL}/sessions", f"{POOL}/sessions/own", f"{POOL}/events"):
            await root.get(path)
        assert world.records() == []
        await root.get(f"{POOL}/sessions/ada%2Fs")
    assert [one["route"] for one in world.records()] == ["/v1/pools/{pool}/sessions/{session}"]


# --- the file ---------------------------------------------------------------------------------------


def test_files_are_bounded_in_size_and_number_and_the_newest_stay(tmp_path):
    file = AuditFile(tmp_path / "audit.jsonl", max_bytes=1000, files=3)
    for number in range(500):
        file.append(json.dumps({"n": number, "text": "x" * 50}).encode() + b"\n")
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    newest = [record["n"] for record in file.newest(20)]
    assert newest == list(range(499, 479, -1)), "also across files"


def test_several_processes_make_room_without_losing_lines(tmp_path):
    files = [AuditFile(tmp_path / "audit.jsonl", max_bytes=2000, files=100) for _ in range(4)]

    def many(number):
        for line in range(100):
            files[number].append(json.dumps({"who": number, "n": line}).encode() + b"\n")

    threads = [threading.Thread(target=many, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert len(set(lines)) == len(lines) == 400


def test_a_line_that_finds_no_room_on_the_disk_leaves_no_torn_one(tmp_path, monkeypatch):
    file = AuditFile(tmp_path / "audit.jsonl", max_bytes=10_000, files=2)
    file.append(b'{"n":1}\n')
    real, calls = __import__("os").write, []

    def half(descriptor, data):
        calls.append(data)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:3])

    with monkeypatch.context() as patched:
        patched.setattr("dspool_serve.access.audit_file.os.write", half)
        with pytest.raises(OSError, match="No space"):
            file.append(b'{"n":2}\n')
    file.append(b'{"n":3}\n')
    assert (tmp_path / "audit.jsonl").read_bytes() == b'{"n":1}\n{"n":3}\n'


def test_a_file_that_is_a_link_or_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be written"):
        Audit(tmp_path / "audit.jsonl")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path):
    (tmp_path / "audit.jsonl").touch(mode=0o644)
    Audit(tmp_path / "audit.jsonl")
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
