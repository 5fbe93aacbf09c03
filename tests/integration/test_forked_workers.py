"""Forked workers on a real Ray: they start, die and are told apart like others, and leave nothing behind.

All other tests of this folder run on workers of the default kind, forked on Linux; on executed ones with
`DSPOOL_WORKER_START=exec`; those marked `both_starts` on both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import ray
from harness import PATIENCE_S, QUESTION, full, kill, pids, until, until_status

from dspool.runtime import forkserver
from dspool.runtime.forkserver import shim
from dspool.testing import LMServer

pytestmark = [
    pytest.mark.ray,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux"),
]


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def session_dir(cluster):
    return Path(ray._private.worker._global_node.get_session_dir_path())


def parents(session_dir, workers):
    """The parents of these processes."""
    return [found for found in forkserver.report(session_dir) if set(found.workers) & set(workers)]


async def starts(pool):
    """How each worker was started, once all have said so."""
    await until(lambda: len(pool.client.membership.workers) == pool.client.config.pool_size)
    status = await until_status(pool, lambda now: all(worker.start for worker in now.workers))
    return [worker.start for worker in status.workers]


@pytest_asyncio.fixture(loop_scope="session")
async def pool(common_pools):
    """The common pool of forked workers."""
    found = await common_pools("fork")
    await full(found)
    return found


async def test_two_pools_fork_their_workers_from_one_parent_and_answer(pool, start_pool, session_dir):
    one, two = pool, await start_pool(worker_start="fork", pool_size=1)
    assert [*await starts(one), *await starts(two)] == ["fork"] * 3
    workers = [*pids(one).values(), *pids(two).values()]
    (parent,) = parents(session_dir, workers)
    assert set(workers) <= set(parent.workers)
    for pool in (one, two):
        assert (await pool.execute("qa", **QUESTION)).answer == "Paris"


async def test_all_actors_are_forked_from_the_node_s_parent_and_ray_starts_no_more_than_they_need(
    pool, session_dir
):
    (parent,) = parents(session_dir, pids(pool).values())
    forked = set()
    for pid in parent.workers:
        with contextlib.suppress(psutil.NoSuchProcess):  # of a test before
            forked.add(psutil.Process(pid).name().partition(".")[0])
    assert {"ray::SupervisorActor", "ray::StoreActor", "ray::MetricsActor"} <= forked
    ours = psutil.Process().children(recursive=True)
    programs = {Path(part).name for process in ours for part in command_of(process)}
    assert "raylet" in programs
    assert not {"monitor.py", "log_monitor.py", "dashboard.py"} & programs


def command_of(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def test_two_jobs_on_one_cluster_have_a_parent_each(pool, cluster, session_dir):
    program = Path(__file__).with_name("other_job.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        cluster,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    pid, how = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).split()
    assert how == b"fork"
    (theirs,) = parents(session_dir, [int(pid)])
    (ours,) = parents(session_dir, pids(pool).values())
    assert theirs.pid != ours.pid
    process.stdin.close()
    assert await process.wait() == 0
    # Its worker ends with its job; the parent has nobody left then, and ends after its idle time.
    await until(lambda: not psutil.pid_exists(int(pid)))
    assert (await pool.execute("qa", **QUESTION)).answer == "Paris"


@pytest.mark.long
async def test_many_starts_and_kills_leave_nothing_behind():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.startup", "--soak", "4", "--quick", "--json",
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 2 * PATIENCE_S)
    found = json.loads(said.splitlines()[-1])["soak"]
    assert found["clean"], found
    assert process.returncode == 0


async def test_forked_workers_are_like_others_in_what_they_inherit(pool, common_pools):
    forked, executed = pool, await common_pools("exec")
    await full(executed)

    def look(self):
        import gc
        import logging
        import random
        import threading

        from opentelemetry import trace
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        return {
            "group": os.getpgrp() == os.getpid(),
            "cwd": os.getcwd(),
            "umask": os.umask(0o22),
            "oom": Path("/proc/self/oom_score_adj").read_text(),
            "masks": [
                line
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("SigBlk")
            ],
            "signals": [str(signal.getsignal(number)) for number in (1, 2, 10, 13)],
            "path": sys.path[0],
            "level": logging.getLogger("dspool").getEffectiveLevel(),
            "handlers": [type(handler).__name__ for handler in logging.getLogger().handlers],
            "collects": gc.isenabled(),
            "main": threading.main_thread().name,
            "traces": type(trace.get_tracer_provider()).__name__,
            "environ": {key: value for key, value in os.environ.items() if key != "_DSPOOL_START"},
        }, [
            random.random(),
            ray._raylet.UniqueID.from_random().hex(),
            ray._raylet.ObjectID.from_random().hex(),
            RandomIdGenerator().generate_span_id(),
            RandomIdGenerator().generate_trace_id(),
        ]

    seen = {}
    for pool in (forked, executed):
        seen[pool] = [await worker.__ray_call__.remote(look) for worker in pool.workers().values()]
    assert seen[forked][0][0] == seen[executed][0][0]
    drawn = [tuple(random) for _, random in (*seen[forked], *seen[executed])]
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == len(column)


async def test_forked_workers_have_connections_of_their_own_and_one_that_dies_is_noticed_without_a_check(
    start_pool, session_dir
):
    with LMServer(text="[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]") as server:
        profile = {"model": "openai/gpt-4o-mini", "endpoint": server.url, "engine": "lm15"}
        pool = await start_pool(
            worker_start="fork",
            lm_profiles={"http": profile},
            default_lm="http",
            slots_per_worker=2,
            health_check_interval_s=10 * PATIENCE_S,
        )
        await full(pool)
        answers = await asyncio.gather(*(pool.execute("qa", **QUESTION) for _ in range(20)))
        assert {found.answer for found in answers} == {"Paris"}

        def connections(self, port):
            import psutil

            found = psutil.Process().net_connections("tcp")
            return [used.laddr.port for used in found if used.raddr and used.raddr.port == port]

        held = [
            await worker.__ray_call__.remote(connections, server.port) for worker in pool.workers().values()
        ]
        assert all(held)
        assert not set(held[0]) & set(held[1])

        victim, pid = sorted(pids(pool).items())[0]
        (parent,) = parents(session_dir, [pid])
        kill(pid)
        await until(lambda: victim not in pids(pool))
        await full(pool)
        # Reaped: a zombie would still be there.
        await until(lambda: not psutil.pid_exists(pid))
        (after,) = parents(session_dir, pids(pool).values())
        assert after.pid == parent.pid
        assert (await pool.execute("qa", **QUESTION)).answer == "Paris"


async def test_workers_outlive_their_parent_and_the_next_one_starts_another(pool, session_dir):
    before = pids(pool)
    (parent,) = parents(session_dir, before.values())
    kill(parent.pid)
    await until(lambda: not psutil.pid_exists(parent.pid) or psutil.Process(parent.pid).status() == "zombie")
    assert (await pool.execute("qa", **QUESTION)).answer == "Paris"
    assert pids(pool) == before
    victim, pid = sorted(before.items())[0]
    kill(pid)
    await until(lambda: victim not in pids(pool))
    await full(pool)
    assert await starts(pool) == ["fork", "fork"]
    new = set(pids(pool).values()) - set(before.values())
    assert [found.pid != parent.pid for found in parents(session_dir, new)] == [True]


async def test_workers_share_what_is_preloaded_and_it_does_not_count_as_their_own_memory(start_pool):
    from retrieved import INDEX_MB

    pool = await start_pool(
        worker_start="fork",
        preload=["retrieved"],
        programs={"lookup": {"import_path": "retrieved:Lookup"}},
        allowed_imports=("retrieved", "noted"),
        health_check_interval_s=0.5,
        health_check_timeout_s=0.5,
        recycle={"max_memory_mb": float(INDEX_MB)},
    )
    assert await starts(pool) == ["fork", "fork"]
    found = await asyncio.gather(*(pool.execute("lookup", place=1) for _ in range(20)))
    assert {answer.sum for answer in found} == {INDEX_MB * 2**17}
    before = pids(pool)
    assert {answer.worker for answer in found} == set(before)
    for worker in before:
        assert (await pool.worker_memory(worker))["uss_mb"] < INDEX_MB
    status = await until_status(pool, lambda now: all(worker.running == 0 for worker in now.workers))
    assert all(worker.own_mb < INDEX_MB < worker.rss_mb for worker in status.workers)
    assert pids(pool) == before


async def test_a_hung_parent_costs_one_time_out_then_workers_start_by_exec_and_say_so(
    start_pool, session_dir
):
    # A parent of its own, as hanging it would bring others down.
    steps = [{"step": "import_modules", "modules": ["colorsys"]}, {"step": "load_programs"}]
    pool = await start_pool(worker_start="fork", health_check_interval_s=2.0, warmup={"steps": steps})
    await full(pool)
    (parent,) = parents(session_dir, pids(pool).values())
    os.kill(parent.pid, signal.SIGSTOP)
    victim, pid = sorted(pids(pool).items())[0]
    kill(pid)
    await until(lambda: victim not in pids(pool))
    await full(pool)
    assert not psutil.pid_exists(parent.pid) or psutil.Process(parent.pid).status() == "zombie"
    why = f"exec: the parent (process {parent.pid}) did not answer in {shim.ANSWER_S:g} s"
    assert sorted(await starts(pool)) == [why, "fork"]
    deadline = time.monotonic() + PATIENCE_S
    while not (events := [one for one in (await pool.events()).events if one.event == "worker.fallback"]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert [why.removeprefix("exec: ")] == [seen.metadata["reason"] for seen in events]
    (after,) = [found for found in forkserver.report(session_dir) if found.directory == parent.directory]
    assert after.exec_only == why.removeprefix("exec: ")
