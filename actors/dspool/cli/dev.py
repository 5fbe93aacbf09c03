"""`dspool dev`: serve programs and load them anew whenever a file of them is saved. Without Ray, with one worker."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from dspool import private_files
from dspool.cli import programs
from dspool.cli.address import checked_port
from dspool.cli.options import ConfigFile, Debug, Json
from dspool.cli.output import Output, guarded
from dspool.cli.run_file import RunFile, this_process
from dspool.cli.watching import Watch
from dspool.config import PoolConfig, load_config
from dspool.errors import ConfigError, Conflict, NotAllowed, PoolError
from dspool.messages import Deployment

SERVICE = "dspool_serve.ingress.development"
"""Loaded when it runs, as that of `up`: imports point down."""
_HOST = "127.0.0.1"

Load = Callable[[], PoolConfig]


def dev(
    served: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROGRAM", help="As for `up`: package.module:Name, or name=package.module:Name."
        ),
    ] = None,
    config: ConfigFile = None,
    lm: Annotated[
        str | None,
        typer.Option("--lm", help="LM profile of the configuration for all programs that name none."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    name: Annotated[str | None, typer.Option("--name", "--pool", help="Name of the pool.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve programs on this machine and load them anew whenever a file of them is saved, until Ctrl-C.

    One worker, no Ray, whole tracebacks, prompts and answers in traces. Reads `.env` in the current directory, which no
    other command does. What does not load is shown here and on the dashboard, and the last good version serves on.
    """
    out = Output(json, debug)
    with guarded(out):
        programs.find_here()
        before = dict(os.environ)

        def load() -> PoolConfig:
            _read_env(before, out)
            flags: dict[str, Any] = {"service.port": port, "default_lm": lm, "name": name}
            if served:
                flags = programs.flags_for(served, config, flags)
            return load_config(cli=flags, file=config).config

        asyncio.run(Development(load, config, served or [], out).run())


class Development:
    """One `dspool dev`."""

    def __init__(self, load: Load, file: Path | None, served: list[str], out: Output) -> None:
        self._load, self._file, self._served, self._out = load, file, served, out
        self._pools: Any = None

    async def run(self) -> None:
        from dspool.local import processes

        config = self._load()
        if config.service.host not in (_HOST, "localhost"):
            raise NotAllowed(
                f"dspool dev listens on {_HOST} only, and the configuration says {config.service.host}: "
                "serve others with `dspool up`"
            )
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stopping.set)
        processes.prepare()
        run_file = RunFile(config.state_dir).of_development
        try:
            with tempfile.TemporaryDirectory(prefix="dspool-dev-") as directory:
                await self._serve(config, Path(directory), run_file, stopping)
        finally:
            run_file.remove(os.getpid())
            await asyncio.to_thread(processes.end_parent)

    async def _serve(
        self, config: PoolConfig, directory: Path, run_file: RunFile, stopping: asyncio.Event
    ) -> None:
        service = import_module(SERVICE)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((_HOST, checked_port(_HOST, config.service.port)))
            url = f"http://{_HOST}:{listener.getsockname()[1]}"
            self._pools = service.OnePool(config.name)
            run = msgspec.structs.replace(this_process(config.name), url=url, development=True)
            # `dspool status`, `logs` and the others find it there. Where nothing can be written, they do not.
            with suppress(OSError):
                private_files.make_directory(run_file.state_dir)
                run_file.write(run)
            async with service.serving(self._pools, self._local(config, directory), listener):
                stop = asyncio.create_task(stopping.wait())
                work = asyncio.create_task(self._work(config, directory, url))
                await asyncio.wait({stop, work}, return_when=asyncio.FIRST_COMPLETED)
                stop.cancel()
                work.cancel()
                self._out.progress("stop", "stopping")
                results = await asyncio.gather(work, return_exceptions=True)
            if isinstance(results[0], Exception):
                raise results[0]

    async def _work(self, config: PoolConfig, directory: Path, url: str) -> None:
        """Pools one after another: a changed configuration or environment needs another one."""
        changed: asyncio.Queue[set[Path]] = asyncio.Queue()
        names = [program.import_path for program in config.programs.values() if program.import_path]
        watch = Watch([*names, *config.allowed_imports], self._settings_files())
        watching = asyncio.create_task(_collect(watch, changed))
        try:
            while True:
                await self._one_pool(config, directory, url, changed)
                while True:
                    try:
                        config = self._load()
                        break
                    except ConfigError as refused:
                        self._failed("the configuration is refused", refused)
                        await changed.get()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _one_pool(
        self, config: PoolConfig, directory: Path, url: str, changed: asyncio.Queue[set[Path]]
    ) -> None:
        """Until what it is made of changes, besides the programs' own files."""
        from dspool.local.pool import LocalPool
        from dspool.local.processes import ProcessRuntime

        began = time.monotonic()
        try:
            async with LocalPool.start(self._local(config, directory), ProcessRuntime) as pool:
                self._pools.pool = pool
                try:
                    self._ready(config, url, time.monotonic() - began)
                    while not (files := await changed.get()) & set(self._settings_files()):
                        await self._reload(pool, config, files)
                finally:
                    self._pools.pool, self._pools.why_not = None, "its configuration changed"
        except PoolError as failed:
            self._pools.why_not = str(failed)
            self._failed("nothing is served yet", failed)
            await changed.get()

    async def _reload(self, pool: Any, config: PoolConfig, files: set[Path]) -> None:
        began = time.monotonic()
        names = ", ".join(sorted(_short(file) for file in files)[:3])
        invalidate_caches()
        done: dict[str, int] = {}
        try:
            for program in config.programs:
                try:
                    made = await pool.deploy(Deployment(program, 0), canary_s=0.0)
                except Conflict as unchanged:
                    if unchanged.details.get("reason") != "nothing_changed":
                        raise
                else:
                    done[program] = made.version
            if not done:
                # A data file, or a module that no program has imported yet.
                for worker in (await pool.status()).workers:
                    await pool.restart(worker.id)
        except PoolError as failed:
            pool.note(f"the new code does not load, the last good version serves on: {failed}")
            self._failed(f"{names}: the last good version serves on", failed)
            return
        pool.note("")
        # All that the change touched has a new version, also what another program's deployment took along.
        current = await pool.current_versions()
        versions = ", ".join(f"{program} v{version}" for program, version in sorted(current.items()))
        self._out.progress("reload", f"{names}: {versions}, after {time.monotonic() - began:.2f} s")

    def _local(self, config: PoolConfig, directory: Path) -> PoolConfig:
        """As the configuration says, save for what a single worker on this machine has otherwise."""
        return config.override(
            pool_size=1,
            min_pool_size=1,
            spares=0,
            lazy=False,
            enable_optimizer=False,
            warmup={"min_ready": None},
            state_dir=directory,
            store_url=None,
            telemetry={"capture_content": True, "sampling": 1.0, "max_traces_per_s": None},
            # Each save is a death on purpose.
            restart={"intensity": 1000, "backoff_s": 0.05, "backoff_max_s": 0.5},
        )

    def _settings_files(self) -> list[Path]:
        files = [Path(".env").absolute()]
        if (name := self._file or os.environ.get("DSPOOL_CONFIG")) is not None:
            files.append(Path(name).absolute())
        return files

    def _ready(self, config: PoolConfig, url: str, took_s: float) -> None:
        self._out.progress("ready", f"serving {', '.join(config.programs)} at {url} after {took_s:.1f} s")
        if self._out.as_json:
            return self._out.result({"event": "serving", "url": url, "pool": config.name}, "")
        for program in config.programs:
            self._out.progress("", f"try it: {url}/dashboard#/{config.name}/try/{program}")
        self._out.progress("", "save a file, and the next request runs it; Ctrl-C stops")
        return None

    def _failed(self, what: str, failed: PoolError) -> None:
        self._out.progress("error", f"{what}: {failed}")
        traceback = failed.details.get("traceback")
        if traceback and not self._out.as_json:
            print(traceback, file=sys.stderr, flush=True)


async def _collect(watch: Watch, changed: asyncio.Queue[set[Path]]) -> None:
    async for files in watch.changes():
        await changed.put(files)


def _read_env(before: dict[str, str], out: Output) -> None:
    """Take the variables of `.env`; those that were set before win."""
    from dotenv import dotenv_values

    file = Path(".env")
    values = dotenv_values(file, interpolate=False) if file.is_file() else {}
    taken = {key: value for key, value in values.items() if value is not None and key not in before}
    for key in set(os.environ) - set(before):
        if key not in ("PYTHONPATH",):
            del os.environ[key]
    os.environ.update(taken)
    if taken:
        out.progress("env", f"read {', '.join(sorted(taken))} from .env, as only dspool dev does")


def _short(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)


def add_to(app: typer.Typer) -> None:
    app.command()(dev)


__all__ = ["Development", "add_to", "dev"]
