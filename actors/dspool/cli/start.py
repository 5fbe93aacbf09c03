"""`dspool up`: check, start, serve until told to stop; and `dspool down`, which tells it to stop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Protocol

import msgspec

from dspool import preflight
from dspool.cli import detached
from dspool.cli.address import admitted_host, checked_port
from dspool.cli.first_process import become_child
from dspool.cli.json_log import JsonLog, follow
from dspool.cli.output import EXIT_INTERRUPTED, Output
from dspool.cli.ray_output import RayOutput
from dspool.cli.run_file import RunFile, ServiceRun, this_process
from dspool.cli.trial_import import refuse_what_cannot_be_imported
from dspool.config import Loaded, PoolConfig, load_config, load_pools
from dspool.core.lifecycle.start_steps import StepTiming, timings_text
from dspool.errors import PoolError

_SECRET = frozenset({"store_url", "extra", "kwargs"})

SERVICE = "dspool_serve.ingress.service"
"""With `doctor`, the only mention of the HTTP package below it: imports point down (`dspool_serve` imports `dspool`).
The command line loads it when it runs and never at import. It also keeps Ray's import out of `dspool --help`."""


class RunningService(Protocol):
    """What `dspool_serve.ingress.service.Service` offers the command line."""

    url: str
    ray_address: str
    ray_dashboard_url: str | None
    temp_dir: Path | None
    ray_token_path: Path | None
    tls_cert: str | None
    owns_serve: bool
    pools: list[Any]
    took_over: bool
    changed: Callable[[], None]
    flags: dict[str, Any]

    def timings(self) -> list[StepTiming]: ...
    async def start(self, report: Callable[[str, str], None]) -> None: ...
    async def stop(self, report: Callable[[str, str], None]) -> None: ...
    def kill(self) -> None: ...


def service_module() -> Any:
    return import_module(SERVICE)


def run_up(
    file: Path | None,
    flags: dict[str, Any],
    out: Output,
    *,
    address: str | None = None,
    ray_dashboard: bool = False,
    timings: bool = False,
) -> None:
    """Start the service, serve until SIGINT or SIGTERM, take it down.

    Raises:
        PoolError: it could not be started; nothing is left running.
    """
    become_child()
    configs, flags = _checked(file, flags)
    config, *more = configs
    run_file = RunFile(config.state_dir)
    run = msgspec.structs.replace(this_process(config.name), log=os.environ.get(detached.LOG), flags=flags)
    before = run_file.read()
    if address is None and before is not None and before.joined and before.serves_alone():
        address = before.ray_address
    preflight.refuse_obstacles(config, beside=more, own_ray=address is None, serves=True)
    if address is None:
        # On another's cluster, what is installed where the workers are counts.
        for one in configs:
            refuse_what_cannot_be_imported(one, partial(out.progress, "wait"))
    # Until the event loop hears them; what is claimed is given back. What was ignored at the start stays so.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end_early)
    run_file.claim(run)
    left: tuple[ServiceRun, ...] = ()
    try:
        if (claimed := run_file.read()) is not None:
            left = claimed.left
        # What is on the cluster that is joined, the service itself takes over or clears.
        for earlier in left:
            if address is None or not earlier.joined:
                clear(earlier, out)
        left = ()
        beside = {"more": more} if more else {}
        service: RunningService = service_module().Service(
            config, address=address, ray_dashboard=ray_dashboard, **beside
        )
        service.flags = flags
        run = msgspec.structs.replace(run, joined=address is not None)
        # Ray prints to stdout now and then; there, programs read our JSON.
        with redirect_stdout(RayOutput(sys.stderr)):
            asyncio.run(_serve(service, run, run_file, out, timings))
    except PoolError as failed:
        # Something may have come into its way since it began.
        raise preflight.explained(failed, config, beside=more, own_ray=address is None) from failed.__cause__
    finally:
        if not left:
            run_file.remove(run.pid)


def _end_early(number: int, frame: object) -> NoReturn:
    sys.exit(EXIT_INTERRUPTED)


def clear(run: ServiceRun, out: Output) -> None:
    """Remove what a dead `dspool up` may have left: only what its run file names.

    Raises:
        Conflict: another process looks after it now.
    """
    out.progress(
        "clean", f"an earlier service (pid {run.pid}) ended without cleaning up; removing what it left"
    )
    why_not = service_module().clear(
        pool=run.pool,
        address=run.ray_address if run.joined else None,
        temp_dir=None if run.temp_dir is None else Path(run.temp_dir),
        owns_serve=run.owns_serve,
    )
    if why_not:
        out.progress("warning", why_not)


def _checked(file: Path | None, flags: dict[str, Any]) -> tuple[list[PoolConfig], dict[str, Any]]:
    """The configurations of the pools, with an address that can be listened on; and `flags` with that address.

    Raises:
        ConfigError, NotAllowed: see `admitted_host`.
    """
    first = load_config(cli=flags, file=file).config
    service = first.service
    host, _ = admitted_host(service, os.environ)
    left = RunFile(first.state_dir).read()
    # It has the port that it serves at, and is taken over.
    goes_on = left is not None and left.serves_alone()
    port = service.port if goes_on and service.port else checked_port(host, service.port)
    flags = {key: value for key, value in flags.items() if value is not None}
    at = {"service.host": host, "service.port": port}
    loaded = load_pools(cli=flags, file=file, code=at)
    said = {"service.host": service.host, "service.port": service.port}
    given = {key: at[key] for key in at if key in flags or at[key] != said[key]}
    return [one.config for one in loaded], {**_of_environment(loaded[0]), **flags, **given}


def _of_environment(loaded: Loaded) -> dict[str, Any]:
    """The settings that variables said, without what may be a secret: `dspool apply` may run where they are not set."""
    return {
        row.key: row.value
        for row in loaded.rows()
        if row.source.startswith("env:") and not _SECRET & set(row.key.split("."))
    }


async def _serve(
    service: RunningService, run: ServiceRun, run_file: RunFile, out: Output, timings: bool
) -> None:
    stopping = asyncio.Event()

    def asked_to_stop(number: int) -> None:
        # A terminal that closes hangs up more than once, two `dspool down` ask twice, and nobody is in a hurry: only a
        # second Ctrl-C is.
        if stopping.is_set() and number == signal.SIGINT:
            service.kill()
            run_file.remove(run.pid)
            os._exit(EXIT_INTERRUPTED)
        stopping.set()
        record()

    loop = asyncio.get_running_loop()
    # `nohup` ignores SIGHUP for what it starts, a shell SIGINT for jobs in the background.
    ignored = {
        number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_IGN
    }

    def listen() -> None:
        for number in {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} - ignored:
            loop.add_signal_handler(number, asked_to_stop, number)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    def report(step: str, text: str) -> None:
        # Ray puts handlers of its own in place of ours when it starts, and its SIGTERM one ends the process.
        listen()
        try:
            out.progress(step, text)
        except (OSError, SystemExit) as unheard:
            # Whoever read it is gone, as a terminal that closed: that ends a start, and never cuts an end off.
            if not stopping.is_set() and isinstance(unheard, SystemExit):
                raise
            stopping.set()

    def record() -> None:
        """What would have to be cleared if this process died now."""
        nonlocal run
        run = recorded(run, service)
        if not stopping.is_set():
            run_file.write(run)
            return
        # It ends, whatever becomes of the disk.
        with suppress(OSError, PoolError):
            run_file.write(msgspec.structs.replace(run, phase="stopping"))

    service.changed = record
    listen()
    began, following = time.time(), None
    starting = asyncio.ensure_future(service.start(report))
    waiting = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            run = msgspec.structs.replace(run, phase="serving")
            record()
            found = service.timings()
            if timings:
                for line in timings_text(found).splitlines():
                    out.progress("", line)
            out.ready({**_facts(run, run_file, service.took_over), "timings": msgspec.to_builtins(found)})
            if isinstance(out, JsonLog):
                following = asyncio.gather(*(follow(pool, out.take, since=began) for pool in service.pools))
            await waiting
    finally:
        stopping.set()
        if following is not None:
            following.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
        record()
        await service.stop(report)
        waiting.cancel()


def recorded(run: ServiceRun, service: RunningService) -> ServiceRun:
    """`run` with what there is of its service by now."""
    return msgspec.structs.replace(
        run,
        url=service.url if run.phase == "serving" else run.url,
        ray_address=service.ray_address,
        temp_dir=None if service.temp_dir is None else str(service.temp_dir),
        ray_token_path=None if service.ray_token_path is None else str(service.ray_token_path),
        tls_cert=service.tls_cert,
        owns_serve=service.owns_serve,
        ray_dashboard=_ray_dashboard(service),
    )


def _ray_dashboard(service: RunningService) -> str | None:
    return f"http://{service.ray_dashboard_url}" if service.ray_dashboard_url else None


def _facts(run: ServiceRun, run_file: RunFile, took_over: bool) -> dict[str, Any]:
    facts = {
        "url": run.url,
        "pool": run.pool,
        "pid": run.pid,
        "ray_address": run.ray_address,
        "ray_token_path": run.ray_token_path,
        "state_dir": str(run_file.state_dir),
        "took_over": took_over,
    }
    return {**facts, "ray_dashboard": run.ray_dashboard} if run.ray_dashboard else facts


def run_down(run_file: RunFile, timeout_s: float, out: Output) -> dict[str, Any]:
    """Stop the service: ask its process, wait, and insist after `timeout_s`. Nothing running is fine too."""
    run = run_file.read()
    if run is None:
        return {"stopped": False, "message": f"nothing to stop: no service runs from {run_file.state_dir}"}
    if not run.alive():
        went_on = run.serves_alone()
        if not _clear_what_is_left(run, run_file, out):
            said = f"the service (pid {run.pid}) had ended; what it left is removed already"
            return {"stopped": False, "pid": run.pid, "message": said}
        if went_on:
            said = f"stopped pool {run.pool}, which went on after its `dspool up` (pid {run.pid}) had ended"
            return {"stopped": True, "pid": run.pid, "message": said}
        return {"stopped": False, "message": f"the service (pid {run.pid}) had ended; removed what it left"}
    if run.phase == "stopping":
        out.progress("drain", f"the service (pid {run.pid}) is ending already; running operations finish")
    else:
        _tell(run, signal.SIGTERM)
    if not _gone(run, timeout_s):
        # A Ctrl-C ends at once an `up` that is ending; the last resort is SIGKILL.
        for number in (signal.SIGINT, signal.SIGKILL):
            _tell(run, number)
            if _gone(run, 10.0):
                break
    # It may not have cleaned up itself.
    _clear_what_is_left(run, run_file, out)
    return {"stopped": True, "pid": run.pid, "message": f"stopped pool {run.pool} (pid {run.pid})"}


def _tell(run: ServiceRun, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(run.pid, number)


def _clear_what_is_left(run: ServiceRun, run_file: RunFile, out: Output) -> bool:
    """Whether this process did it: of several, one does, and the others wait for it."""
    with suppress(FileNotFoundError), run_file.path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = run_file.read()
        if found is None or found.pid != run.pid:
            return False
        for one in (*found.left, found):
            if one.joined or one.temp_dir is not None:
                clear(one, out)
        run_file.remove(run.pid)
        return True
    return False


def _gone(run: ServiceRun, patience_s: float) -> bool:
    """Whether it ended within `patience_s`. One that its parent has not looked after yet has ended as well."""
    until = time.monotonic() + patience_s
    while run.alive():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
