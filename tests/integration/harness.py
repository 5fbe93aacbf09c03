"""Small things that tests with a real Ray need: what ran where, waiting for a state, killing, a second client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray

from dspool.errors import PoolError

_numbers = count()
PATIENCE_S = 120.0
"""What a busy machine may take over anything that comes at once on an idle one."""
QUESTION = {"context": "Paris is the capital of France.", "question": "What is the capital of France?"}


def settings(state_dir: Path, **overrides: Any) -> dict[str, Any]:
    """A pool of two workers whose programs write down each execution; it forgives many deaths in a short time."""
    return {
        "name": f"t{next(_numbers)}",
        "state_dir": state_dir,
        "programs": {
            "qa": {"spec": {"signature": "context, question -> answer"}},
            "noted": {"import_path": "noted:Noted", "idempotent": True},
            "once": {"import_path": "noted:Noted", "idempotent": False},
        },
        "allowed_imports": ("noted",),
        "warmup": {"steps": [{"step": "custom_code", "import_path": "noted:warmed"}]},
        # On a machine that is busy with other things a worker takes its time to start.
        "init_timeout_s": PATIENCE_S,
        "checkout_timeout_s": PATIENCE_S,
        "operation_timeout_s": PATIENCE_S,
        "restart": {"intensity": 1000, "backoff_s": 0.01, "backoff_max_s": 0.05},
        **overrides,
    }


class Entry(NamedTuple):
    what: str
    label: str
    pid: int


class Log:
    """The executions that programs of `noted` wrote down, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def inputs(self, label: str, seconds: float = 0.0) -> dict[str, Any]:
        return {"label": label, "path": str(self.path), "seconds": seconds}

    def entries(self) -> list[Entry]:
        if not self.path.exists():
            return []
        words = (line.split() for line in self.path.read_text().splitlines())
        return [Entry(what, label, int(pid)) for what, label, pid in words]

    def labels(self, what: str) -> list[str]:
        return [entry.label for entry in self.entries() if entry.what == what]


async def until(true: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """Wait until `true()` is; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.01)
    return value


async def until_status(pool: Any, fits: Callable[[Any], bool], seconds: float = PATIENCE_S) -> Any:
    """Ask for the status until it fits, and return that one."""
    deadline = time.monotonic() + seconds
    while not fits(status := await pool.status()):
        assert time.monotonic() < deadline, status
        await asyncio.sleep(0.2)
    return status


async def full(pool: Any, size: int = 2) -> None:
    """Wait until the pool serves with `size` workers and this client is connected to each."""
    await until(lambda: len(pool.client.membership.workers) == size)
    assert await pool.client.wait_ready(size, PATIENCE_S)


def pids(pool: Any) -> dict[str, int]:
    return {member.worker_id: member.pid for member in pool.client.membership.workers}


async def pid_of(actor: Any) -> int:
    """The actor's process; waits while Ray restarts it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await actor.__ray_call__.remote(lambda self: os.getpid())
        except ray.exceptions.RayActorError:
            assert time.monotonic() < deadline, "the actor did not come back"
            await asyncio.sleep(0.05)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def still_there(pids: Iterable[int]) -> list[psutil.Process]:
    """Which of these processes have not ended by themselves in good time."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(found, timeout=PATIENCE_S)
    return alive


def actors_of(pool: str) -> list[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in named if actor["name"].startswith(f"dspool:{pool}:"))


async def owner_of(pool: Any, session: str) -> str | None:
    found, _ = await pool.sessions()
    return next(info.owner for info in found if info.id == session)


class Load:
    """Callers that ask for a program again and again, each for the next when it has an answer; failures are kept.

    By themselves they leave most of a processor to what is tested: workers start meanwhile.
    """

    def __init__(
        self, pool: Any, log: Log, program: str = "once", callers: int = 8, seconds: float = 0.02
    ) -> None:
        self.pool, self.log, self.program, self.seconds = pool, log, program, seconds
        self.done = 0
        self.failed: dict[str, PoolError] = {}
        self.stopping = False
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(callers)]

    async def _ask(self, number: int) -> None:
        count = 0
        while not self.stopping:
            count += 1
            label = f"{self.program}-{number}-{count}"
            try:
                result = await self.pool.execute(self.program, **self.log.inputs(label, self.seconds))
                assert result.label == label
            except PoolError as failed:
                self.failed[label] = failed
                # A refusal comes without any waiting: nothing else would ever run.
                await asyncio.sleep(0.01)
            else:
                self.done += 1

    async def more(self, operations: int) -> None:
        """Wait for so many more."""
        target = self.done + operations
        await until(lambda: self.done >= target)

    async def __aenter__(self) -> Load:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopping = True
        _, hanging = await asyncio.wait(self._tasks, timeout=PATIENCE_S)
        assert not hanging
        for task in self._tasks:
            task.result()


class SecondClient:
    """Another process with a client of its own: `second_client.py`, told what to do in one line of JSON."""

    def __init__(self, address: str, **task: Any) -> None:
        command = [sys.executable, str(Path(__file__).with_name("second_client.py"))]
        self.process = subprocess.Popen(
            [*command, json.dumps({"address": address, **task})], stdout=subprocess.PIPE, text=True
        )

    async def said(self) -> dict[str, Any]:
        """The next line it says."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), PATIENCE_S)
        assert line, "the second client ended without a word"
        return json.loads(line)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> SecondClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
