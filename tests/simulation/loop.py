"""An event loop whose time is simulated, on which every process of the system has its own callbacks.

A callback belongs to the process in whose context it was made. Callbacks of one process run in the order in which they
became ready, as on a real loop; which process goes next is chance. So a process can stand still, and die without a
`finally` of it being run.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.world import World

STEP_S = 20e-6
"""What one callback takes: time goes on even while nobody sleeps."""
_CALL_S = (50e-6, 400e-6)
"""What a call in another thread takes."""


class Stuck(Exception):
    """The simulation cannot go on."""


class Process:
    """One process of the simulated system; `kill`, `pause` and `resume` are what signals do."""

    def __init__(self, loop: SimulatedLoop, name: str, node: str) -> None:
        self.loop, self.name, self.node = loop, name, node
        self.alive = True
        self.paused = False
        self.ready: deque[asyncio.Handle] = deque()
        self.on_kill: list[Callable[[], None]] = []
        """Run when it dies, by the simulated kernel: connections break, files close."""
        self.context = contextvars.copy_context()
        self.context.run(_process.set, self)

    def __repr__(self) -> str:
        return self.name

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(work, context=self.context.copy())

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function` now as part of this process."""
        return self.context.copy().run(function, *args)

    def soon(self, function: Callable[..., Any], *args: Any, after_s: float = 0.0) -> asyncio.TimerHandle:
        return self.loop.call_later(after_s, function, *args, context=self.context.copy())

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more."""
        if not self.alive:
            return
        self.alive = False
        self.ready.clear()
        for close in self.on_kill:
            close()

    def pause(self) -> None:
        """SIGSTOP, a frozen host, a long collection of garbage."""
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.loop.runnable(self)


_process: contextvars.ContextVar[Process] = contextvars.ContextVar("simulated_process")
current: Callable[[], Process] = _process.get


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs until the future that it is given is done; `world` has the time and the dice."""

    def __init__(self, world: World, most_callbacks: int) -> None:
        """`most_callbacks`: more of them, and it will never come to rest."""
        super().__init__()
        self.world, self._most_callbacks = world, most_callbacks
        self.callbacks = 0
        world.node = lambda: _process.get(self.outside).node
        self.outside = Process(self, "simulation", "outside")
        """What belongs to no process of the system: the faults, the checks."""
        self._timers: list[tuple[float, int, asyncio.TimerHandle, Process]] = []
        self._made = 0
        self._runnable: dict[Process, None] = {}
        self._kept: list[asyncio.Task[Any]] = []
        """All tasks, so that none is collected: the `finally` of a dead process must not run."""
        self.over = False
        self.network: Any = None
        """Set by the network that it is to offer."""
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._on_exception)
        self.unhandled: list[dict[str, Any]] = []

    def time(self) -> float:
        return self.world.now

    # --- callbacks ---

    def call_soon(
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        context = context if context is not None else contextvars.copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        self._append(context.get(_process, self.outside), handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        context = context if context is not None else contextvars.copy_context()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._made += 1
        heapq.heappush(self._timers, (when, self._made, handle, context.get(_process, self.outside)))
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.world.now + max(0.0, delay), callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def _append(self, process: Process, handle: asyncio.Handle) -> None:
        if process.alive and not self.over:
            process.ready.append(handle)
            if not process.paused:
                self._runnable[process] = None

    def runnable(self, process: Process) -> None:
        if process.ready and process.alive:
            self._runnable[process] = None

    # --- running ---

    def run_until(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run the simulation `work` to its end; its result."""
        asyncio.events._set_running_loop(self)
        try:
            task = self.outside.spawn(work)
            while not task.done():
                self._step()
            return task.result()
        finally:
            self.over = True
            asyncio.events._set_running_loop(None)
            for kept in self._kept:
                kept._log_destroy_pending = False  # type: ignore[attr-defined]
                if not kept.done():
                    # Closed by nobody: its `finally` would run in a world that has ended.
                    _FORGOTTEN.append(kept)

    def _step(self) -> None:
        if self.callbacks > self._most_callbacks:
            raise Stuck(f"it does not come to rest: {self.callbacks} callbacks")
        world, timers = self.world, self._timers
        if not self._runnable:
            if not timers:
                raise Stuck("nothing will ever happen again")
            world.now = max(world.now, timers[0][0])
        while timers and timers[0][0] <= world.now:
            _, _, handle, process = heapq.heappop(timers)
            if not handle._cancelled:
                self._append(process, handle)
        if not self._runnable:
            return
        runnable = self._runnable
        ready = list(runnable)
        process = ready[0] if len(ready) == 1 else ready[world.dice.randrange(len(ready))]
        # A turn as a real loop has it: what is ready now, and nothing that it makes ready.
        for _ in range(len(process.ready)):
            if process.paused or not process.ready:
                break
            handle = process.ready.popleft()
            if not handle._cancelled:
                handle._run()
                world.now += STEP_S
                self.callbacks += 1
        if process.paused or not process.ready:
            runnable.pop(process, None)

    # --- what asyncio asks of a loop ---

    async def create_server(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.network.listen(factory, host, port)

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.network.connect(factory, host, port)

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, context=context)
        self._kept.append(task)
        if len(self._kept) > 4096:
            self._kept = [kept for kept in self._kept if not kept.done()]
        return task

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        self._debug = False

    def is_running(self) -> bool:
        return True

    def _check_closed(self) -> None:
        pass

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.over:
            self.unhandled.append(context)

    def set_default_executor(self, executor: Any) -> None:
        executor.shutdown(wait=False)

    def run_in_executor(self, executor: Any, function: Any, *args: Any) -> asyncio.Future[Any]:
        """Calls it on the loop, a little later: no simulated thread runs beside another."""
        future: asyncio.Future[Any] = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = function(*args)
            except BaseException as raised:
                future.set_exception(raised)
            else:
                future.set_result(result)

        self.call_later(self.world.dice.uniform(*_CALL_S), run)
        return future


_FORGOTTEN: list[asyncio.Task[Any]] = []
"""Tasks that were under way when their simulation ended."""
