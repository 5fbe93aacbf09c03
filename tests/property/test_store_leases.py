"""The session store against a model small enough to be read at a glance.

Two pools, three workers, three session ids and two principals do what they like with one real database, through
two stores that take turns (one may be closed and opened again at any time). Set DSPOOL_TEST_POSTGRES_URL to run
it on PostgreSQL instead of SQLite.
"""

import asyncio
import os
import tempfile
import uuid
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dspool.errors import StaleLease, UnknownSession
from dspool.messages import Change
from dspool.store.store import SessionStore

POSTGRES = os.environ.get("DSPOOL_TEST_POSTGRES_URL")

# Uneven on purpose: most of what is worth seeing needs several calls on one session.
pools = st.sampled_from(["p", "p", "p", "q"])
sessions = st.sampled_from(["a", "a", "b"])
workers = st.sampled_from(["w1", "w2", "w3"])
principals = st.sampled_from([None, None, "ann", "bob"])
living = st.sampled_from([("w1", "w2", "w3"), ("w1", "w2", "w3"), ("w1",), ("w2", "w3"), ()])
changes = st.lists(
    st.one_of(
        st.builds(
            Change, st.sampled_from(["variable", "program"]), st.sampled_from(["x", "y"]), st.integers(0, 9)
        ),
        st.builds(
            Change, st.sampled_from(["variable", "program"]), st.sampled_from(["x", "y", "*"]), st.none()
        ),
    ),
    max_size=4,
)


@dataclass
class Known:
    """A session as it should be."""

    principal: str | None
    used_at: float
    owner: str | None = None
    last_owner: str | None = None
    epoch: int = 0
    moves: int = 0
    items: dict = field(default_factory=dict)

    def apply(self, changes):
        for change in changes:
            if change.name == "*":
                self.items = {key: value for key, value in self.items.items() if key[0] != change.kind}
            elif change.payload is None:
                self.items.pop((change.kind, change.name), None)
            else:
                self.items[change.kind, change.name] = change.payload

    def hidden_from(self, principal):
        return self.principal is not None and principal is not None and principal != self.principal


class Leases(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.prefix = f"{uuid.uuid4()}-"
        self.now = 0.0
        self.stores = [self.opened(), self.opened()]
        self.known = {}  # (pool, session) -> Known
        self.leases = []  # every lease ever granted: (pool, session, worker, epoch)
        self.highest = {}  # (pool, session) -> highest epoch seen, over all its lives
        self.dead = set()

    def opened(self):
        store = SessionStore(POSTGRES or f"sqlite:///{self.directory.name}/s.db", clock=lambda: self.now)
        self.loop.run_until_complete(store.open())
        return store

    def call(self, method, pool, *args, **kwargs):
        self.stores.reverse()
        return self.loop.run_until_complete(
            getattr(self.stores[0], method)(self.prefix + pool, *args, **kwargs)
        )

    def teardown(self):
        if hasattr(self, "loop"):
            for store in self.stores:
                self.loop.run_until_complete(store.close())
            self.loop.close()
            self.directory.cleanup()

    @rule(pool=pools, session=sessions, worker=workers, create=st.booleans(), principal=principals)
    def acquire(self, pool, session, worker, create, principal):
        known = self.known.get((pool, session))
        try:
            lease = self.call("acquire", pool, session, worker, create=create, principal=principal)
        except StaleLease:
            assert (pool, worker) in self.dead
            return
        except UnknownSession:
            assert (known is None and not create) or (known is not None and known.hidden_from(principal))
            return
        assert (pool, worker) not in self.dead
        if known is None:
            assert create
            known = self.known[pool, session] = Known(principal, self.now)
        assert not known.hidden_from(principal)
        assert lease.principal in (known.principal, None)
        if known.owner not in (None, worker):
            assert (lease.granted, lease.owner, lease.epoch, lease.items) == (
                False,
                known.owner,
                known.epoch,
                (),
            )
            return
        assert (lease.granted, lease.owner) == (True, worker)
        if known.owner is None:
            assert lease.epoch > self.highest.get((pool, session), 0)
            known.moves += known.last_owner not in (None, worker)
            known.owner = known.last_owner = worker
            known.epoch = self.highest[pool, session] = lease.epoch
        assert lease.epoch == known.epoch
        known.used_at = self.now
        assert {(item.kind, item.name): item.payload for item in lease.items} == known.items
        self.leases.append((pool, session, worker, lease.epoch))

    @rule(data=st.data(), changes=changes)
    def commit(self, data, changes):
        if not self.leases:
            return
        pool, session, worker, epoch = data.draw(st.sampled_from(self.leases[-4:]))
        self.commit_as(pool, session, worker, epoch, changes)

    @rule(pool=pools, session=sessions, worker=workers, epoch=st.integers(0, 5), changes=changes)
    def commit_as(self, pool, session, worker, epoch, changes):
        known = self.known.get((pool, session))
        try:
            self.call("commit", pool, session, worker, epoch, changes)
        except StaleLease:
            assert known is None or (known.owner, known.epoch) != (worker, epoch)
            return
        assert known is not None
        assert (known.owner, known.epoch) == (worker, epoch)
        known.apply(changes)
        known.used_at = self.now

    @rule(pool=pools, worker=workers, names=st.sets(sessions))
    def release(self, pool, worker, names):
        self.call("release", pool, worker, sorted(names))
        self.freed(pool, lambda session, owner: owner == worker and session in names)

    @rule(pool=pools, worker=workers)
    def worker_dead(self, pool, worker):
        assert self.call("worker_dead", pool, worker) == self.freed(pool, lambda _, owner: owner == worker)
        self.dead.add((pool, worker))

    @rule(pool=pools, session=sessions, heir=workers, changes=changes, released=st.booleans())
    def move(self, pool, session, heir, changes, released):
        """The owner goes, another takes over, and what the old one sent arrives late."""
        known = self.known.get((pool, session))
        if known is None or known.owner is None:
            self.acquire(pool, session, heir, True, None)
            return
        worker, epoch = known.owner, known.epoch
        self.commit_as(pool, session, worker, epoch, changes)
        if released:
            self.release(pool, worker, {session})
        else:
            self.worker_dead(pool, worker)
        self.acquire(pool, session, heir, False, None)
        self.commit_as(pool, session, worker, epoch, changes[:1])
        self.commit_as(pool, session, heir, epoch, changes[1:])

    @rule(pool=pools, alive=living)
    def workers_alive(self, pool, alive):
        freed = self.freed(pool, lambda _, owner: owner is not None and owner not in alive)
        assert self.call("workers_alive", pool, list(alive)) == freed
        self.dead -= {(pool, worker) for worker in alive}

    def freed(self, pool, matches):
        mine = [k for (of, session), k in self.known.items() if of == pool and matches(session, k.owner)]
        for known in mine:
            known.owner = None
        return len(mine)

    @rule(pool=pools, session=sessions, principal=principals)
    def end(self, pool, session, principal):
        known = self.known.get((pool, session))
        ended = self.call("end", pool, session, principal=principal)
        assert ended == (known is not None and not known.hidden_from(principal))
        if ended:
            del self.known[pool, session]

    @rule(seconds=st.integers(1, 30))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(pool=pools, worker=workers, names=st.sets(sessions))
    def touch(self, pool, worker, names):
        self.call("touch", pool, worker, sorted(names))
        for (of, session), known in self.known.items():
            if of == pool and session in names and known.owner == worker:
                known.used_at = self.now

    @rule(pool=pools, idle_s=st.integers(0, 60))
    def expire(self, pool, idle_s):
        old = {k: v for k, v in self.known.items() if k[0] == pool and v.used_at < self.now - idle_s}
        assert self.call("expire", pool, idle_s) == sorted((k[1], v.owner) for k, v in old.items())
        for key in old:
            del self.known[key]

    @rule(pool=pools, session=sessions, asker=principals)
    def look(self, pool, session, asker):
        known = self.known.get((pool, session))
        shown = known is not None and not known.hidden_from(asker)
        assert (session in [info.id for info in self.call("list", pool, principal=asker)[0]]) == shown
        try:
            assert self.call("get", pool, session, principal=asker).id == session
            assert shown
        except UnknownSession:
            assert not shown

    @rule()
    def reopen(self):
        self.loop.run_until_complete(self.stores.pop().close())
        self.stores.append(self.opened())

    @rule(pool=pools, workers_asking=st.permutations(["w1", "w2", "w3"]), session=sessions)
    def race(self, pool, workers_asking, session):
        """All workers ask at once, in both stores: nobody may win beside the owner."""

        async def ask():
            asks = [
                self.stores[i % 2].acquire(self.prefix + pool, session, worker, create=False)
                for i, worker in enumerate(workers_asking)
            ]
            return await asyncio.gather(*asks, return_exceptions=True)

        before = self.known.get((pool, session))
        answers = self.loop.run_until_complete(ask())
        granted = [a for a in answers if not isinstance(a, Exception) and a.granted]
        assert len(granted) <= 1
        if before is None:
            assert not granted
        for (
            lease
        ) in granted:  # nothing happened in between: asking again tells the same, and the model learns it
            self.acquire(pool, session, lease.owner, False, None) if before.owner else self.learn(pool, lease)

    def learn(self, pool, lease):
        known = self.known[pool, lease.session]
        assert lease.epoch > self.highest[pool, lease.session]
        known.moves += known.last_owner not in (None, lease.owner)
        known.owner = known.last_owner = lease.owner
        known.epoch = self.highest[pool, lease.session] = lease.epoch
        known.used_at = self.now
        self.leases.append((pool, lease.session, lease.owner, lease.epoch))

    @invariant()
    def everything_acknowledged_is_readable_and_nothing_else(self):
        if not hasattr(self, "stores"):
            return
        for pool in ("p", "q"):
            found, cursor = self.call("list", pool)
            assert cursor is None
            assert {
                s.id: (s.principal, s.owner, s.epoch, s.moves, s.last_used_at, s.programs) for s in found
            } == {
                session: (
                    k.principal,
                    k.owner,
                    k.epoch,
                    k.moves,
                    k.used_at,
                    tuple(sorted(name for kind, name in k.items if kind == "program")),
                )
                for (of, session), k in self.known.items()
                if of == pool
            }


TestLeases = Leases.TestCase
TestLeases.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
