"""`dspool doctor`: looks at what users ask about when something is off, and says what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import typer
from msgspec.structs import replace

from dspool.causes import met
from dspool.cli import overview, programs
from dspool.cli.doctor import listeners, machine, service
from dspool.cli.doctor.findings import Finding, fail, of
from dspool.cli.doctor.listeners import ListeningSocket
from dspool.cli.env_file import take_variables
from dspool.cli.options import ConfigFile, Debug, EnvFile, Host, Json, PoolName, Port, StateDir
from dspool.cli.output import EXIT_FAILED, Output, guarded
from dspool.cli.run_file import RunFile
from dspool.config import PoolConfig, load_pools
from dspool.errors import ConfigError, UnknownPool
from dspool.runtime import forkserver

HAPROXY = "dspool_serve.ingress.haproxy"
"""Loaded when it is asked for: imports point down, and this package lies below."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(doctor)


def doctor(
    served: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROGRAM", help="What `dspool up` is to be told to serve: package.module:Name."
        ),
    ] = None,
    config: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    state_dir: StateDir = None,
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster that `dspool up --address` is to join, or `auto`.")
    ] = None,
    pool: PoolName = None,
    env_file: EnvFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check this machine, the configuration and the running service. Exit code 1 when something fails.

    With what `dspool up` is to be told: the same programs, file, address and variables. Changes nothing and starts
    nothing that stays.
    """
    out = Output(json, debug)
    with guarded(out):
        if env_file is not None:
            take_variables(env_file, os.environ)
        findings, open_ports = examine(config, state_dir, address, pool, host=host, port=port, served=served)
        worst = _worst(findings)
        table = f"\n\n{listeners.picture(open_ports)}" if open_ports else ""
        out.result(
            {
                "result": worst,
                "checks": msgspec.to_builtins(findings),
                "listeners": msgspec.to_builtins(open_ports),
            },
            picture(findings) + table,
        )
        if worst == "fail":
            raise typer.Exit(EXIT_FAILED)


class Examination(NamedTuple):
    findings: list[Finding]
    listeners: list[ListeningSocket]
    """Of the running service."""


def examine(
    file: Path | None,
    state_dir: Path | None,
    address: str | None = None,
    pool: str | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    served: list[str] | None = None,
) -> Examination:
    """All checks. One that breaks is a finding itself: the others are still of use."""
    findings = [
        machine.python(),
        *machine.packages(),
        *_guarded("corrections", machine.corrections),
        machine.bytecode(),
        *_guarded("working directory", machine.working_directory),
        *_guarded("temporary directory", machine.temporary_directory),
        *_guarded("shared memory", machine.shared_memory),
        *_guarded("open files", machine.open_files),
        *_guarded("loopback", machine.loopback),
        *_guarded("home", machine.home),
        machine.locale(),
    ]
    flags: dict[str, Any] = {
        "state_dir": None if state_dir is None else str(state_dir),
        "service.host": host,
        "service.port": port,
    }
    try:
        if served:
            programs.find_here()
            flags = programs.flags_for(served, file, flags)
        configs = [one.config for one in load_pools(cli=flags, file=file)]
        for config in configs:
            programs.find_configured(config)
    except ConfigError as refused:
        findings.append(of("configuration", met("bad_configuration", why=refused.message)))
        return Examination(findings, [])
    of_service = _of(configs, address, pool, findings)
    return of_service._replace(findings=[*findings, *of_service.findings])


def _of(
    configs: Sequence[PoolConfig], address: str | None, pool: str | None, before: Sequence[Finding]
) -> Examination:
    config = configs[0]  # that of the service itself
    workers_to_start = sum(one.pool_size for one in configs)
    needs_sandbox = config.service.execute_code or any(one.allow_execute_code for one in configs)
    run_file = RunFile(config.state_dir)
    run = run_file.read()
    run = run if run is not None and run.alive() else None
    session = service.session_directory(run)
    joined = run if run is not None and run.joined else None
    cluster, nodes = service.ray_cluster(joined.ray_address if joined else address)
    running = configs if run is not None and pool is None else configs[:1]
    if len(running) > 1:
        seen = {one.name: _seen(run_file, one.name) for one in running}
    else:  # a service may have its pool by another name than the file, or than the default
        seen = {config.name: overview.status(run_file, pool)}
    workers = [
        worker["pid"]
        for of_pool in seen.values()
        for worker in (of_pool.get("status") or {}).get("workers", ())
    ]
    open_ports: list[ListeningSocket] = []

    def listening() -> list[Finding]:
        open_ports.extend(listeners.report(run, workers))
        return listeners.findings(open_ports, running=run is not None)

    def store(one: PoolConfig) -> Finding:
        # While a service runs, its store is where it is: what is to be said is that others have joined.
        running = joined is not None
        return service.store(one, nodes, running=running, address=None if running else address)

    load = cache(service.why_not_shared)  # pools that load the same need one try

    def fork_server(one: PoolConfig) -> Finding:
        return service.fork_server(one, load=load)

    tls = "service.tls_cert" if config.service.tls_cert is not None else None
    findings = [
        *_guarded("haproxy", lambda: machine.haproxy(import_module(HAPROXY).binary(), tls)),
        *_guarded("processes", lambda: machine.processes(workers_to_start)),
        *_guarded("memory", lambda: machine.memory(workers_to_start)),
        *_guarded("sandbox", lambda: machine.deno(needs_sandbox)),
        *_guarded("state directory", lambda: service.state_directory(config.state_dir)),
        *cluster,
        *_of_each("store", store, configs),
        *_guarded("access", lambda: service.access(config)),
        *_guarded("port", lambda: service.port(config, run)),
        *_of_each("imports", service.imports, configs),
        *_of_each("language model", service.language_models, configs),
        *_of_each("fork server", fork_server, configs),
        *_of_each("service", lambda one: service.running(seen[one.name]), running),
        *_guarded("fork parent", lambda: service.parents(forkserver.report(session) if session else [])),
        *_guarded(listeners.CHECK, listening),
    ]
    if run is None and _worst([*before, *findings]) != "fail":
        # One that runs tells of its own workers, and what fails already may be why a worker does.
        findings += _of_each("programs", service.programs, configs)
    return Examination(findings, open_ports)


def _seen(run_file: RunFile, pool: str) -> dict[str, Any]:
    """What `dspool status` sees, or that the service has no such pool."""
    try:
        return overview.status(run_file, pool)
    except UnknownPool:
        return {"running": True, "unknown": True}


def _of_each(
    check: str, look: Callable[[PoolConfig], Any], configs: Sequence[PoolConfig]
) -> Iterator[Finding]:
    for config in configs:
        for found in _guarded(check, partial(look, config)):
            named = len(configs) == 1 or found.found.startswith(f"pool {config.name} ")
            yield found if named else replace(found, found=f"pool {config.name}: {found.found}")


def _guarded(check: str, look: Callable[[], Any]) -> Iterable[Finding]:
    try:
        found = look()
    except Exception as failed:
        meaning = "it is not known whether this is in order"
        return [fail(check, f"could not be checked: {type(failed).__name__}", meaning, "please report it")]
    return [found] if isinstance(found, Finding) else found


def picture(findings: list[Finding]) -> str:
    """One line for each check, and below those that are not ok, what it means and what to do."""
    width = max(len(found.check) for found in findings)
    lines = []
    for found in findings:
        lines.append(f"{found.level:4}  {found.check:{width}}  {found.found}")
        if found.level != "ok":
            indent = " " * (width + 8)
            lines += [f"{indent}{found.meaning}", f"{indent}-> {found.advice}"]
    return "\n".join(lines)


def _worst(findings: list[Finding]) -> str:
    levels = {found.level for found in findings}
    return "fail" if "fail" in levels else "warn" if "warn" in levels else "ok"
