"""On which node a worker starts, and which one moves when nodes are out of balance. Pure: the time is an argument.

Ray starts it there if it can; where it cannot any more, Ray chooses another one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from zlib import crc32

if TYPE_CHECKING:
    from dspool.config import PoolConfig

PROVEN_AFTER_S: Final = 30.0
"""A node that was lost, or did not answer, has to be well for so long before it gets workers again."""
_REMEMBERED: Final = 1024
"""Machines that were unwell."""
BALANCED_AFTER_S: Final = 30.0
"""Nodes have to be out of balance for so long before a worker moves, and between two that do."""


class ClusterNode(NamedTuple):
    """A living node, as the cluster describes it."""

    id: str
    labels: Mapping[str, str] = {}
    free: Mapping[str, float] = {}
    """What of its resources nobody has taken."""
    host: str = ""
    """Its address: a machine that comes back has another id."""
    is_head: bool = False

    @property
    def machine(self) -> str:
        return self.host or self.id


class Wanted(NamedTuple):
    """What a worker needs of its node."""

    strategy: Literal["spread", "pack"] = "spread"
    labels: Mapping[str, str] = {}
    resources: Mapping[str, float] = {}

    @classmethod
    def of(cls, config: PoolConfig) -> Wanted:
        placement, memory_mb = config.placement, config.memory_mb
        needs = {
            "CPU": config.num_cpus,
            "GPU": config.num_gpus,
            "memory": 0.0 if memory_mb is None else memory_mb * 2**20,
            **placement.resources,
        }
        if placement.accelerator is not None:
            needs[f"accelerator_type:{placement.accelerator}"] = 0.001
        return cls(
            placement.strategy, placement.node_labels, {name: need for name, need in needs.items() if need}
        )

    def fits(self, node: ClusterNode) -> bool:
        """Whether `node` may have such a worker, and has room for it."""
        if any(node.labels.get(name) != value for name, value in self.labels.items()):
            return False
        return all(node.free.get(name, 0.0) >= need for name, need in self.resources.items())


class Seat(NamedTuple):
    """Where a worker is, or will be."""

    worker_id: str
    node: str
    is_spare: bool = False
    sessions: int = 0
    is_settled: bool = True
    """It takes traffic or is a spare, and nothing is about to happen to it."""


class Choice(NamedTuple):
    node: str | None
    """None: Ray chooses."""
    reason: str


def apart(nodes: Sequence[ClusterNode], roles: Sequence[str], pool: str) -> dict[str, str | None]:
    """A node for each of a pool's other actors, so that no node has them all; None: Ray chooses.

    Those named first are off the head node, which takes the cluster's own control plane with it; and those of several
    pools are not all on the same node.
    """
    if len(nodes) < 2:
        return dict.fromkeys(roles)
    others = sorted(node.id for node in nodes if not node.is_head)
    first = crc32(pool.encode()) % max(1, len(others))
    order = [*others[first:], *others[:first], *(node.id for node in nodes if node.is_head)]
    return {role: order[number % len(order)] for number, role in enumerate(roles)}


class NodeHistory:
    """Which machines were lost, or had workers that could not be reached, and when they were last unwell."""

    def __init__(self) -> None:
        self._alive: dict[str, str] = {}
        """Machines by the ids of the nodes that lived when last looked at."""
        self._unwell_at: dict[str, float] = {}

    def seen(self, nodes: Collection[ClusterNode], now: float) -> None:
        """These live now. For a machine that was away the time begins when it is back; a new one is taken as it is."""
        alive = {node.id: node.machine for node in nodes}
        back = set(alive.values()) - set(self._alive.values())
        for machine in (set(self._alive.values()) - set(alive.values())) | (back & self._unwell_at.keys()):
            self._unwell_at[machine] = now
        self._alive = alive
        while len(self._unwell_at) > _REMEMBERED:
            del self._unwell_at[next(iter(self._unwell_at))]

    def unwell(self, node: str, now: float) -> None:
        """A worker on the node of this id was out of reach."""
        if (machine := self._alive.get(node)) is not None:
            self._unwell_at[machine] = now

    def unproven(self, now: float) -> set[str]:
        """Ids of the living nodes that have to prove themselves."""
        return {
            node
            for node, machine in self._alive.items()
            if now - self._unwell_at.get(machine, -math.inf) < PROVEN_AFTER_S
        }


def choose(
    wanted: Wanted,
    nodes: Sequence[ClusterNode],
    seats: Iterable[Seat],
    *,
    for_spare: bool,
    unproven: Collection[str] = (),
) -> Choice:
    """The node for one more worker.

    Spread, it goes where the fewest workers are; of these a spare where the fewest take traffic, so that it is not
    beside what it stands for. Nodes in `unproven` get it only if there is no other.
    """
    if len(nodes) < 2:
        return Choice(None, "there is one node")
    able = [node for node in nodes if wanted.fits(node)]
    if not able:
        return Choice(None, "no node has what it needs; Ray waits for one")
    well = [node for node in able if node.id not in unproven]
    seats = list(seats)
    everybody = Counter(seat.node for seat in seats)
    serving = Counter(seat.node for seat in seats if not seat.is_spare)
    first, second = (serving, everybody) if for_spare else (everybody, serving)

    def rank(node: ClusterNode) -> tuple[int, int, str]:
        if wanted.strategy == "pack":
            return (-everybody[node.id], 0, node.id)
        return (first[node.id], second[node.id], node.id)

    node = min(well or able, key=rank)
    if not well:
        return Choice(node.id, "every node that has room was lost just now")
    beside = everybody[node.id]
    return Choice(node.id, f"{wanted.strategy}: {beside} of {len(seats)} workers are there")


def to_move(
    wanted: Wanted, nodes: Sequence[ClusterNode], seats: Sequence[Seat], *, unproven: Collection[str] = ()
) -> Seat | None:
    """The worker whose move would bring the nodes nearer to balance; None: they are, or it is not the time for it.

    A move costs a start and a drain, so one worker more than elsewhere is balance.
    """
    if wanted.strategy != "spread" or not all(seat.is_settled for seat in seats):
        return None
    able = [node.id for node in nodes if node.id not in unproven and wanted.fits(node)]
    counts = Counter(seat.node for seat in seats)
    if not able or not counts:
        return None
    serving = Counter(seat.node for seat in seats if not seat.is_spare)
    # Which of them take traffic matters as well: a spare takes over from one that moves.
    for counted, movable in ((counts, seats), (serving, [seat for seat in seats if not seat.is_spare])):
        fewest = min(counted[node] for node in able)
        # Of the fullest the one with the most that take traffic: one move then does for both.
        fullest, most = max(
            counted.items(), key=lambda count: (count[1], serving[count[0]], count[0]), default=("", 0)
        )
        if most - fewest >= 2:
            # A spare has nothing to lose; else the one with the fewest sessions to move.
            return min(
                (seat for seat in movable if seat.node == fullest),
                key=lambda seat: (not seat.is_spare, seat.sessions, seat.worker_id),
            )
    return None


__all__ = [
    "BALANCED_AFTER_S",
    "PROVEN_AFTER_S",
    "Choice",
    "ClusterNode",
    "NodeHistory",
    "Seat",
    "Wanted",
    "apart",
    "choose",
    "to_move",
]
