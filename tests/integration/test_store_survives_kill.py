"""What the store acknowledged is there after SIGKILL, at whatever moment it came."""

import asyncio
import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path

from dspool.messages import Change
from dspool.store.store import SessionStore

ROUNDS = 12
SESSIONS = 8

WRITER = """
import asyncio, os, sys
from dspool.messages import Change
from dspool.store.store import SessionStore

async def write(store, session, begin):
    lease = await store.acquire("p", session, "w", create=True)
    for number in range(begin, 1_000_000):
        # Two items that must never be seen apart.
        both = [Change("variable", "x", number), Change("program", "y", {"number": number, "pad": "." * 500})]
        await store.commit("p", session, "w", lease.epoch, both)
        os.write(1, f"{session} {number}\\n".encode())

async def main():
    begin = int(sys.stdin.readline())  # imports are done: the parent's clock starts here
    store = SessionStore(sys.argv[1])
    await store.open()
    await asyncio.gather(*(write(store, f"s{i}", begin) for i in range(int(sys.argv[2]))))

os.write(1, b"ready\\n")
asyncio.run(main())
"""


def start(url):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(SESSIONS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )


def killed_after(writer, begin, commits, seconds):
    """Let `writer` acknowledge `commits` and go on for about `seconds`, kill it, and return what it had acknowledged
    by session."""
    assert writer.stdout.readline() == b"ready\n"
    writer.stdin.write(f"{begin}\n".encode())
    said = b""
    while said.count(b"\n") < commits:
        said += os.read(writer.stdout.fileno(), 65536)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([writer.stdout], [], [], left)[0]:
            said += os.read(writer.stdout.fileno(), 65536)
    writer.kill()
    said += writer.stdout.read()
    writer.wait()
    writer.stdin.close()
    writer.stdout.close()
    lines = said.decode().split("\n")[:-1]  # what follows the last line end was not said
    return {session: int(number) for session, number in map(str.split, lines)}


async def found(url):
    """By session: the number that survived. Also checks that a commit is there whole or not at all."""
    store = SessionStore(url)
    await store.open()
    await store.workers_alive("p", [])
    survived = {}
    for info in (await store.list("p"))[0]:
        lease = await store.acquire("p", info.id, "reader", create=False)
        items = {item.kind: item.payload for item in lease.items}
        if items:
            assert items["program"]["number"] == items["variable"]
            survived[info.id] = items["variable"]
    await store.workers_alive("p", [])
    await store.close()
    return survived


def test_acknowledged_commits_survive_a_kill_at_any_moment(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/state/dspool.db"
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown when the test fails
    rng = random.Random(seed)
    acknowledged = 0
    writer = start(url)
    for _ in range(ROUNDS):
        following = start(url)  # imports while the other one writes
        # With none, it may die while it opens the database or makes its tables.
        said = killed_after(writer, acknowledged + 1, rng.choice([0, 1, 20]), rng.uniform(0.0, 0.1))
        survived = asyncio.run(found(url))
        for session, number in said.items():
            assert survived[session] >= number, f"{session}: acknowledged {number}, found {survived[session]}"
        acknowledged = max([acknowledged, *survived.values()])
        writer = following
    writer.kill()
    writer.wait()
    writer.stdin.close()
    writer.stdout.close()
    assert acknowledged


async def test_a_dead_writer_blocks_nobody(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/dspool.db"
    await asyncio.to_thread(lambda: killed_after(start(url), 0, 20, 0.0))
    store = SessionStore(url)
    await store.open()
    # A lock that is still there would be waited for, and then be an error.
    lease = await store.acquire("p", "new", "w2", create=True)
    await store.commit("p", "new", "w2", lease.epoch, [Change("variable", "x", 1)])
    await store.close()
