"""What stands for Ray: actors in processes, calls between them, notices of death that come late, restarts."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.loop import Process, SimulatedLoop, current
from tests.simulation.network import Network

RESTART_S = (0.6, 2.5)
NOTICE_S = (0.01, 0.03)
"""When callers hear that an actor is gone."""
_LOOK_S = 0.25


class Gone(Exception):
    """The actor that was asked is dead, or not there."""


class Actor:
    """One actor: the process that it has now, and whoever waits for an answer of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: Process | None = None
        self.instance: Any = None
        self.ended = False
        """It will not be restarted."""
        self.unheard: Callable[[], None] | None = None
        """Tells of its death, of which nobody has heard."""
        self.calls: dict[asyncio.Future[Any], Process] = {}
        self.started: asyncio.Event | None = None


class Cluster:
    """The nodes, their processes and actors. `notice_s` is how late the next notices of death come."""

    def __init__(self, loop: SimulatedLoop, network: Network) -> None:
        self.loop, self.network = loop, network
        self.notice_s = NOTICE_S
        self.lost_share = 0.0
        """Of the notices of death: nobody hears of it, and whoever asks the dead waits."""
        self.orders_lost = False
        """What is told to end does not hear it."""
        self.actors: dict[str, Actor] = {}
        self.processes: list[Process] = []

    def process(self, name: str, node: str) -> Process:
        process = Process(self.loop, name, node)
        self.processes.append(process)
        return process

    # --- actors ---

    def start(
        self,
        name: str,
        node: str,
        build: Callable[[], Coroutine[Any, Any, Any]],
        *,
        after_s: float,
        restarts: bool = False,
        died: Callable[[Actor], None] = lambda actor: None,
    ) -> Actor:
        """An actor whose instance `build` makes in a process of its own, on `node`, `after_s` seconds from now."""
        actor = self.actors[name] = Actor(name)
        self._launch(actor, node, build, after_s, restarts, died)
        return actor

    def _launch(
        self,
        actor: Actor,
        node: str,
        build: Callable[[], Coroutine[Any, Any, Any]],
        after_s: float,
        restarts: bool,
        died: Callable[[Actor], None],
    ) -> None:
        process = self.process(actor.name, node)
        actor.process, actor.instance = process, None
        actor.started = asyncio.Event()

        async def construct() -> None:
            actor.instance = await build()
            assert actor.started is not None
            actor.started.set()

        def again() -> None:
            if node in self.network.off:
                self.loop.outside.soon(again, after_s=_LOOK_S)
            else:
                self._launch(actor, node, build, 0.0, restarts, died)

        def gone() -> None:
            if not restarts and self.lost_share and self.loop.world.dice.random() < self.lost_share:
                actor.unheard = tell
            else:
                tell()

        def tell() -> None:
            actor.unheard = None
            dice = self.loop.world.dice
            calls, actor.calls = actor.calls, {}
            actor.ended = not restarts
            late_s = dice.uniform(*self.notice_s)
            for future, caller in calls.items():
                caller.soon(_fail, future, f"{actor.name} died", after_s=late_s)
            if restarts:
                again_s = late_s + dice.uniform(*RESTART_S)
                actor.process = actor.instance = None
                self.loop.outside.soon(again, after_s=again_s)
            else:
                self.loop.outside.soon(died, actor, after_s=late_s)

        process.on_kill.append(gone)
        process.soon(lambda: process.spawn(construct()), after_s=after_s)

    async def ask(self, actor: Actor | None, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the actor's instance, from the process that runs now. Raises: Gone."""
        caller = current()
        if actor is None or actor.process is None or actor.ended:
            await asyncio.sleep(self.loop.world.dice.uniform(*NOTICE_S))
            raise Gone("no such actor now")
        target = actor.process
        future: asyncio.Future[Any] = self.loop.create_future()
        actor.calls[future] = caller
        request = pickle.dumps((args, kwargs))
        self._deliver(
            caller, target, lambda: target.spawn(self._serve(actor, target, future, method, request))
        )
        return await future

    async def _serve(
        self, actor: Actor, target: Process, future: asyncio.Future[Any], method: str, request: bytes
    ) -> None:
        assert actor.started is not None
        await actor.started.wait()
        args, kwargs = pickle.loads(request)
        try:
            outcome = pickle.dumps((True, await getattr(actor.instance, method)(*args, **kwargs)))
        except Exception as raised:
            outcome = pickle.dumps((False, raised))
        caller = actor.calls.get(future)
        if caller is not None:
            self._deliver(target, caller, lambda: self._answer(actor, target, future, outcome))

    def _answer(self, actor: Actor, target: Process, future: asyncio.Future[Any], outcome: bytes) -> None:
        if actor.calls.pop(future, None) is None or future.done():
            return
        succeeded, value = pickle.loads(outcome)
        if succeeded:
            future.set_result(value)
        else:
            future.set_exception(value)

    def _deliver(self, sender: Process, receiver: Process, function: Callable[[], Any]) -> None:
        """Run `function` in the receiver when the message is there; it waits as long as the network is broken."""
        network = self.network

        def arrive() -> None:
            if network.reaches(sender.node, receiver.node):
                receiver.soon(function)
            elif receiver.alive:
                self.loop.outside.soon(arrive, after_s=_LOOK_S)

        self.loop.outside.soon(arrive, after_s=network.delay_s(sender.node, receiver.node))


def _fail(future: asyncio.Future[Any], why: str) -> None:
    if not future.done():
        future.set_exception(Gone(why))
