"""The session store over its actor: what it asks for is there, and whoever only asks loads no SQL."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dspool.config import PoolConfig
from dspool.errors import StoreFailed, WorkerLost
from dspool.messages import Change
from dspool.runtime import remote_store
from dspool.runtime import store as store_module
from dspool.runtime.remote_store import RemoteStore
from dspool.runtime.store import StoreActor
from dspool.runtime.store_hand_over import refusal
from dspool.store.store import SessionStore
from dspool.worker import session_store

LOADED = """
import importlib, sys
from dspool.runtime.forkserver import preload
for module in (*preload.BASE, *preload.OFTEN, "dspool.runtime.store", "dspool.runtime.lifecycle"):
    importlib.import_module(module)
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"sqlalchemy", "litellm", "textual", "IPython"}))
"""


def test_each_question_is_one_that_the_store_answers():
    asked = {name for name in vars(RemoteStore) if not name.startswith("_")}
    assert asked
    for name in asked:
        assert inspect.iscoroutinefunction(getattr(RemoteStore, name))
        assert getattr(RemoteStore, name).__name__ == name
        assert inspect.iscoroutinefunction(getattr(SessionStore, name)), name


def test_what_workers_are_forked_from_holds_nothing_that_no_worker_needs():
    said = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=300
    )
    assert said.stdout.strip() == ""


class Handle:
    """Of a store actor; answers what it is told to."""

    def __init__(self, name: str, *answers: object) -> None:
        self._actor_id = SimpleNamespace(hex=lambda: name)
        self.answers, self.asked = list(answers), list[str]()


class Cluster:
    """The stores that are found by name, one after the other; None: nobody has the name just then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *found: Handle | None) -> None:
        self.found, self.handed_over, self.is_exchanged = list(found), set[str](), False
        monkeypatch.setattr(remote_store, "find_actor", self._find)
        monkeypatch.setattr(remote_store, "ask", self._ask)
        monkeypatch.setattr(remote_store, "has_handed_over", lambda pool, actor: actor in self.handed_over)
        monkeypatch.setattr(remote_store, "is_noted", lambda pool: self.is_exchanged)

    async def _find(self, pool: str, role: str) -> Handle:
        one = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        if one is None:
            raise ValueError("no such actor")
        return one

    async def _ask(self, handle: Handle, ask: str, method: str, *args: object, **kwargs: object) -> object:
        handle.asked.append(method)
        answer = handle.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            return await answer()
        return answer


async def test_what_a_store_refuses_as_it_hands_over_its_successor_takes(monkeypatch):
    old, new = Handle("old", refusal("p")), Handle("new", 1, 2)
    Cluster(monkeypatch, old, old, new)
    old.answers.append(refusal("p"))
    store = RemoteStore("p")
    assert await store.commit("p", "s", "w", 1, []) == 1
    assert (old.asked, new.asked) == (["commit", "commit"], ["commit"])
    assert await store.count("p") == 2


async def test_what_never_reached_a_store_that_handed_over_is_asked_again(monkeypatch):
    old, new = Handle("old", WorkerLost("gone")), Handle("new", "lease")
    cluster = Cluster(monkeypatch, old, None, new)
    cluster.handed_over, cluster.is_exchanged = {"old"}, True
    assert await RemoteStore("p").acquire("p", "s", "w", create=True) == "lease"


async def test_what_a_store_may_have_done_that_died_is_not_done_again(monkeypatch):
    old, new = Handle("old", WorkerLost("gone")), Handle("new", 1)
    Cluster(monkeypatch, old, new).is_exchanged = True
    with pytest.raises(StoreFailed, match="not reachable"):
        await RemoteStore("p").commit("p", "s", "w", 1, [])
    assert new.asked == []


async def test_without_an_exchange_nobody_waits_for_a_store_that_is_not_there(monkeypatch):
    Cluster(monkeypatch, None)
    with pytest.raises(StoreFailed, match="not reachable"):
        await RemoteStore("p").count("p")


async def test_nobody_waits_for_ever_for_a_store_that_takes_over(monkeypatch):
    Cluster(monkeypatch, None).is_exchanged = True
    monkeypatch.setattr(remote_store, "SUCCESSOR_S", 0.1)
    with pytest.raises(StoreFailed, match="none took over"):
        await RemoteStore("p").count("p")


async def test_what_a_hand_over_takes_does_not_count_for_the_patience_of_a_worker(monkeypatch):
    monkeypatch.setattr(session_store, "STORE_PATIENCE_S", 0.3)
    began = asyncio.Event()

    async def slowly() -> int:
        began.set()
        await asyncio.sleep(0.6)
        return 1

    cluster = Cluster(monkeypatch, Handle("old", refusal("p")), Handle("new", slowly))
    async with session_store.patience():
        assert await RemoteStore("p").count("p") == 1
    assert began.is_set()
    cluster.found = [Handle("hangs", slowly)]
    with pytest.raises(StoreFailed, match="did not answer"):
        async with session_store.patience():
            await RemoteStore("p").count("p")


async def test_patience_ends_also_after_a_hand_over(monkeypatch):
    monkeypatch.setattr(session_store, "STORE_PATIENCE_S", 0.2)
    Cluster(monkeypatch, Handle("old", refusal("p")), Handle("new", 1))

    async def ask_and_hang() -> None:
        async with session_store.patience():
            await RemoteStore("p").count("p")
            await asyncio.Event().wait()

    with pytest.raises(StoreFailed, match="did not answer"):
        await ask_and_hang()


@pytest.fixture
def actor(tmp_path):
    return StoreActor(PoolConfig(name="p", state_dir=tmp_path, enable_metrics=False))


async def test_a_store_that_hands_over_answers_what_it_took_and_refuses_the_rest(actor, tmp_path):
    lease = await actor.ask("acquire", "p", "s", "w", create=True)
    commits = [
        asyncio.ensure_future(
            actor.ask("commit", "p", "s", "w", lease.epoch, [Change("variable", f"n{number}", number)])
        )
        for number in range(20)
    ]
    await asyncio.sleep(0)  # they have been taken
    await actor.hand_over()
    for commit in commits:
        assert await commit > 0
    with pytest.raises(StoreFailed) as refused:
        await actor.ask("count", "p")
    assert refused.value.details["moved"]
    # The pool is free: nobody has to wait for a heartbeat.
    successor = StoreActor(PoolConfig(name="p", state_dir=tmp_path, enable_metrics=False))
    taken = await asyncio.wait_for(successor.ask("acquire", "p", "s", "w", create=False), 60)
    assert (taken.epoch, len(taken.items)) == (lease.epoch, 20)
    await successor.close()


async def test_a_store_that_cannot_answer_what_it_took_goes_on_and_says_so(actor, monkeypatch):
    await actor.ask("count", "p")
    over = asyncio.Event()

    async def hangs(pool: str) -> int:
        await over.wait()
        return 1

    monkeypatch.setattr(actor._store, "count", hangs)
    monkeypatch.setattr(store_module, "_ANSWERED_S", 0.05)
    asked = asyncio.ensure_future(actor.ask("count", "p"))
    await asyncio.sleep(0)
    with pytest.raises(StoreFailed, match="1 calls are not answered"):
        await actor.hand_over()
    over.set()
    assert await asked == 1
    assert (await actor.ask("create", "p", "new")).id == "new"
    await actor.close()


async def test_a_store_from_which_nobody_takes_over_goes_on(actor, monkeypatch):
    await actor.ask("create", "p", "s")
    await actor.hand_over()
    monkeypatch.setattr(store_module, "_GOES_ON_S", 0.0)
    assert await actor.ask("count", "p") == 1
    await actor.close()
