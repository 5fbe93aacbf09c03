# ruff: noqa: E501
"""Small, realistic bugs, one a line: what the simulation must find, or it cannot be trusted with real ones."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from typing import NamedTuple

_SPEC = importlib.util.find_spec("dspool")
assert _SPEC is not None
assert _SPEC.origin is not None
ENGINE = Path(_SPEC.origin).parent


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    bug: str


_D, _M, _Q, _R = (
    f"core/dispatch/{name}.py" for name in ("dispatcher", "matcher", "session_queues", "retries")
)
_O, _W, _X, _RUN = "worker/ownership.py", "worker/operations.py", "worker/outbox.py", "worker/runner.py"
_S, _SR, _SW = "core/lifecycle/state.py", "store/requests.py", "store/writer.py"
_C, _L, _WIRE = "client/client.py", "client/links.py", "wire/connection.py"

MUTANTS: tuple[Mutant, ...] = (
    # --- the dispatcher ---
    Mutant(_D, "        matcher.queued += 1\n        if operation", "        if operation", "queued is not counted"),
    Mutant(_D, "            self._timers.rest(ticket, now + pause)\n        else:", "            pass\n        else:", "what was bounced often is forgotten"),
    Mutant(_D, "        if ticket.ended:\n            self._bury(ticket, now)\n            return\n        ticket.attempts -= 1", "        ticket.attempts -= 1", "what is bounced after its end is queued again"),
    Mutant(_D, "        self._timers.watch(ticket)\n", "", "nobody watches the deadline"),
    Mutant(_D, "        for ticket in self._timers.overdue(now):\n            self._abandon(ticket, ticket.too_late(now), now)\n", "", "deadlines in the queue pass unseen"),
    Mutant(_D, "                retries.append(ticket)\n", "                pass\n", "what runs again after a death is not offered"),
    Mutant(_D, "            ticket.worker = None\n            self._matcher.disown(ticket, worker_id)\n            pause = None if", "            self._matcher.disown(ticket, worker_id)\n            pause = None if", "what ended with its worker still blocks its session"),
    Mutant(_D, "                self._end(ticket, None, ticket.lost(worker_id, cause), worker_id, now)\n        self", "                pass\n        self", "what ran on a dead worker never ends"),
    Mutant(_D, "        del self._abandoned[ticket.operation.id]\n        self._matcher.advance(ticket, now)", "        del self._abandoned[ticket.operation.id]", "what stands behind one that ended early is not offered"),
    Mutant(_D, "            self._cancel.setdefault(worker.id, []).append(ticket.operation.id)\n", "", "workers do not hear of cancellations"),
    Mutant(_D, "        ticket.attempts -= 1\n        ticket.bounces", "        ticket.bounces", "a bounce counts as an attempt"),
    Mutant(_D, "        if worker_id not in current and worker_id not in finishing:", "        if False:", "declared dead changes nothing"),
    Mutant("core/dispatch/timers.py", "        earliest = math.inf\n        for heap in (self._deadlines, self._resting):", "        earliest = math.inf\n        for heap in (self._deadlines,):", "no timer for what rests"),
    # --- the matcher and the queues of sessions ---
    Mutant(_M, "            if worker.tickets:\n                self._leaving[worker_id] = worker\n", "", "what a leaving worker holds is forgotten"),
    Mutant(_M, "        self.offer_all(homeless, now)\n", "", "what waited for a leaving worker is stranded"),
    Mutant(_D, "        if ticket.worker is None:\n            matcher.advance(ticket, now)\n        if (", "        if (", "what ends in the queue still blocks its session"),
    Mutant(_M, "            if successor is not None:\n                self.offer(successor, now)\n", "            pass\n", "the next of a session is not offered"),
    Mutant(_M, "while (shared or bound) and worker.capacity > len(worker.tickets):", "while (shared or bound) and worker.capacity >= len(worker.tickets):", "one operation too many is sent"),
    Mutant(_M, "            self.sessions.disown(session, worker_id)\n            if worker", "            if worker", "a session that was handed over keeps its owner"),
    Mutant(_M, "        ticket.attempts += 1\n        ticket.sent_at", "        ticket.sent_at", "attempts are not counted"),
    Mutant(_Q, "        queue.append(ticket)\n        return False", "        queue.append(ticket)\n        return True", "operations of a session do not wait for each other"),
    Mutant(_Q, "        queue.popleft()\n        if queue:\n            return queue[0]\n        del", "        queue.popleft()\n        if len(queue) > 1:\n            return queue[0]\n        if queue:\n            return None\n        del", "the last of a session waits for ever"),
    Mutant(_R, "            not ticket.idempotent\n            or ticket", "            ticket", "what is not idempotent runs again"),
    Mutant(_R, "ticket.attempts >= self._config.attempts", "ticket.attempts > self._config.attempts", "one attempt too many"),
    # --- the client ---
    Mutant(_C, "        except BaseException:\n            self._cancel(ticket)\n            raise", "        except BaseException:\n            raise", "a caller that leaves cancels nothing"),
    Mutant(_C, "        if wake is not None and wake < self._timer_at:\n            self._set_timer(wake)", "        if wake is not None and self._timer is None:\n            self._set_timer(wake)", "an earlier wake-up does not move the timer"),
    Mutant(_C, "    def _perform(self) -> None:\n        self._flush_due, self._unsent = False, 0\n", "    def _perform(self) -> None:\n        self._unsent = 0\n", "what was due once is never due again"),
    Mutant("client/control.py", "            # No supervisor for now: traffic goes on with the known workers.\n            await asyncio.sleep(_WATCH_PAUSE_S)", "            return", "whoever found no supervisor once follows none again"),
    Mutant(_C, "            elif worker_id not in self._by_id and self._dispatcher.running_on(worker_id) == 0:\n", "            elif worker_id not in self._by_id:\n", "a worker that leaves loses its connection before it has ended what it runs"),
    Mutant(_C, "        self._dispatcher.lost(worker_id, why, now=time.monotonic(), random=random.random())\n", "", "a broken connection is not told"),
    Mutant(_C, "        for session, granted in report.handed_over:\n            dispatcher.handed_over(worker_id, session, granted, now=now)\n", "", "answers to hand-overs are not heard"),
    Mutant(_L, "        if worker_id in self._members:\n            self._connect(worker_id)\n", "", "a lost connection is not opened again"),
    Mutant(_L, "        finally:\n            self._connecting.pop(worker_id, None)\n", "        finally:\n            pass\n", "whoever was connected once counts as being connected"),
    Mutant(_L, "                except (OSError, TimeoutError, ValueError) as failed:", "                except ValueError as failed:", "one failed connection ends the dialing"),
    # --- the worker ---
    Mutant(_W, "full = self._draining or len(self._executions) >= self.slots", "full = self._draining or len(self._executions) > self.slots", "one slot too many"),
    Mutant(_W, "        while self._executions:\n            self._idle = self._idle or", "        if self._executions:\n            self._idle = self._idle or", "a drain waits for one end and no other"),
    Mutant(_W, "            for execution in list(peer.executions.values()):\n                self._cancel(execution)\n", "", "a dead client keeps its slots"),
    Mutant(_W, "        if result.changes:\n            self._background(self._commit(execution, result))\n        else:", "        if result.changes:\n            self._background(self._commit(execution, result))\n        if True:", "the answer is sent before the commit"),
    Mutant(_W, "        except StaleLease:\n            # Nothing changed: the session has another owner by now, who runs it again.\n            self.moved(execution, \"\")", "        except StaleLease:\n            self._succeed(execution, result)", "a commit under a lost lease is acknowledged"),
    Mutant(_W, "        if execution.operation.session is not None:\n            assert self.ownership is not None\n            self.ownership.leave(execution)\n", "", "a session is never free again"),
    Mutant(_W, "        if execution.started_at is None:\n            self.refuse(execution, execution.too_late(now))\n        else:\n            execution.interrupt()\n\n    async def idle", "        pass\n\n    async def idle", "a worker does not keep deadlines"),
    Mutant(_W, "        del self._executions[execution]\n        if execution.timer", "        if execution.timer", "slots leak"),
    Mutant(_X, "        if self._refused and running < slots:", "        if False:", "whoever heard busy never hears of room"),
    Mutant(_X, "        peer.busy.append(operation_id)\n", "", "busy is not said"),
    Mutant(_O, "        active.queue.append(execution)\n        if active.session is not None:\n            self._next(active)", "        active.queue.append(execution)", "an idle session does not wake up"),
    Mutant(_O, "while active.queue and active.current is None and not active.outdated:", "while active.queue and not active.outdated:", "a session runs two at once"),
    Mutant(_O, "        except BaseException:\n            active.outdated = True\n            raise\n        if active.session", "        except BaseException:\n            raise\n        if active.session", "a session lives on after a failed commit"),
    Mutant(_O, "                    for execution in list(active.queue):\n                        self._moved(execution, lease.owner)\n                    return", "                    return", "operations for another owner are forgotten"),
    Mutant(_O, "        if active is not None and active.current is execution:\n            # Even if the store fails: nobody knows then what it did.\n            active.outdated = True\n", "", "an ended session lives on in memory"),
    Mutant(_O, "        executions, active.queue = list(active.queue), deque()\n        for execution in executions:\n            self.enter(execution)", "        active.queue = deque()", "what waits for a session that is built anew is dropped"),
    # --- the store ---
    Mutant(_SR, "if row is None or row.owner != self.worker or row.epoch != self.epoch:", "if row is None:", "nobody asks who owns the session"),
    Mutant(_SR, "row.owner != self.worker or row.epoch != self.epoch:", "row.owner != self.worker:", "the epoch is not compared"),
    Mutant(_SR, "        elif row.owner is not None and row.owner != self.worker:\n            return", "        elif False:\n            return", "two workers get one lease"),
    Mutant(_SR, "        if dead:\n            raise", "        if False:\n            raise", "a dead worker gets leases"),
    Mutant(_SW, "        if item_keys:\n            await self.connection.execute(_DELETE_ITEM, item_keys)\n", "", "deleted items stay"),
    Mutant(_SW, "        if rows:\n            await self.connection.execute(upsert(self.connection, session_items), rows)\n", "", "changes are acknowledged and not written"),
    Mutant("store/store.py", "        return await self._free(pool, _sessions.c.owner == worker, also=declare)", "        return 0", "the leases of a dead worker stay"),
    # --- the supervisor ---
    Mutant(_S, "        self._orders.bury(w, cause)\n", "", "a dead worker stays a member"),
    Mutant(_S, "        elif w.misses >= self.config.max_health_failures:", "        elif False:", "a worker that hangs is never given up"),
    Mutant(_S, "        w.misses, w.doubted, w.status, w.checked_at = 0, False, status, now", "        w.doubted, w.status, w.checked_at = False, status, now", "misses are not in a row"),
    Mutant(_S, "                return version if version > self.membership.version else 0", "                return 0", "a successor counts versions from where it likes"),
    Mutant(_S, "        if w.phase == \"ready\":\n            self._orders.drain(w, why)", "        if w.phase == \"ready\":\n            self._orders.stop(w, why)", "a drain stops at once"),
    Mutant("supervisor/housekeeping.py", "                await self._store.worker_dead(self._config.name, worker_id)\n                return", "                return", "nobody tells the store of a death"),
    Mutant("supervisor/adoption.py", "    await store.workers_alive(pool, [survivor.handle.worker_id for survivor in survivors])\n", "", "a successor leaves the leases of those that died before it"),
    Mutant("supervisor/adoption.py", "            await store.worker_dead(pool, handle.worker_id)\n", "", "whom a successor gives up may take leases"),
)  # fmt: skip


def install(number: int) -> Mutant:
    """Let the engine, which must not be imported yet, have bug `number`."""
    mutant = MUTANTS[number]
    path = ENGINE / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        raise ValueError(
            f"mutant {number} ({mutant.bug}): its text is {source.count(mutant.old)} times in {mutant.file}"
        )
    code = compile(source.replace(mutant.old, mutant.new), str(path), "exec")
    loader = importlib.machinery.SourceFileLoader
    original = loader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> object:
        return code if Path(self.get_filename(name)) == path else original(self, name)

    loader.get_code = get_code  # type: ignore[method-assign, assignment]
    return mutant
