"""Gives each worker that starts a node, and moves one when nodes have been out of balance for a while.

What is decided, and why, is in `core.lifecycle.placement`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from dspool.config import PoolConfig
from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.placement import (
    BALANCED_AFTER_S,
    ClusterNode,
    NodeHistory,
    Seat,
    Wanted,
    choose,
    to_move,
)
from dspool.core.lifecycle.roster import PENDING
from dspool.core.lifecycle.state import PoolState
from dspool.supervisor.ports import Runtime, Sleep, within

log = logging.getLogger("dspool.supervisor")

LOOK_EVERY_S: Final = 5.0
_NODES_S: Final = 5.0
"""How long the cluster may take to name its nodes; then Ray chooses."""


class Placement:
    def __init__(
        self,
        config: PoolConfig,
        runtime: Runtime,
        state: PoolState,
        feed: Callable[[ev.Event], None],
        *,
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._wanted = Wanted.of(config)
        self._runtime = runtime
        self._state = state
        self._feed = feed
        self._clock, self._sleep = clock, sleep
        self._history = NodeHistory()
        self._chosen: dict[str, Seat] = {}
        """Of workers that have not said yet where they are."""
        self._unbalanced_since: float | None = None

    async def node_for(self, worker_id: str) -> str | None:
        """The node for a worker that starts now; None: wherever there is room."""
        nodes = await self._nodes()
        seats = [seat for seat in self._seats() if seat.worker_id != worker_id]
        for_spare = sum(not seat.is_spare for seat in seats) >= self._state.target
        choice = choose(
            self._wanted,
            nodes,
            seats,
            for_spare=for_spare,
            unproven=self._history.unproven(self._clock()),
        )
        if choice.node is not None:
            self._chosen[worker_id] = Seat(worker_id, choice.node, for_spare)
            log.info("worker %s starts on node %s (%s)", worker_id, choice.node[:12], choice.reason)
        return choice.node

    def out_of_reach(self, worker_id: str) -> list[str]:
        """It is given up. If that is because it did not answer: the others on its node, of which perhaps none does."""
        w = self._state.roster.get(worker_id)
        if w is None or w.member is None or not w.misses:
            return []
        self._history.unwell(w.member.node, self._clock())
        return [other.id for other in self._state.roster if other.doubted]

    async def balance(self) -> None:
        """Look at the nodes again and again, for ever."""
        while True:
            await self._sleep(LOOK_EVERY_S)
            nodes = await self._nodes()
            now = self._clock()
            seat = None
            if not self._state.closed and not self._state.paused:
                unproven = self._history.unproven(now)
                seat = to_move(self._wanted, nodes, self._seats(), unproven=unproven)
            if seat is None:
                self._unbalanced_since = None
            elif self._unbalanced_since is None:
                self._unbalanced_since = now
            elif now - self._unbalanced_since >= BALANCED_AFTER_S:
                self._unbalanced_since = None
                self._feed(ev.RestartRequested(seat.worker_id, "moves to a node that has fewer workers"))

    async def _nodes(self) -> list[ClusterNode]:
        try:
            nodes = await within(_NODES_S, self._runtime.nodes(), self._sleep)
        except Exception as failed:
            log.debug("the nodes are not known now: %s", failed)
            return []
        self._history.seen(nodes, self._clock())
        return nodes

    def _seats(self) -> list[Seat]:
        seats, living = [], set()
        for w in self._state.roster:
            living.add(w.id)
            chosen = self._chosen.get(w.id)
            node = w.member.node if w.member is not None else chosen.node if chosen is not None else ""
            if not node or w.phase in ("stopped", "failed"):
                continue
            is_spare = chosen is not None and chosen.is_spare if w.phase in PENDING else w.phase == "spare"
            is_settled = w.phase in ("ready", "spare") and not w.leaving
            seats.append(Seat(w.id, node, is_spare, w.sessions, is_settled))
        self._chosen = {worker_id: seat for worker_id, seat in self._chosen.items() if worker_id in living}
        return seats


__all__ = ["LOOK_EVERY_S", "Placement"]
