"""Checks of the configuration, and of what runs with it."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dspool import preflight
from dspool.causes import Obstacle, met
from dspool.cli.address import admitted_host, checked_host, checked_port
from dspool.cli.contained import contained
from dspool.cli.doctor.findings import Finding, fail, of, of_error, ok, warn
from dspool.cli.run_file import ServiceRun
from dspool.cli.trial_import import named_in, try_imports
from dspool.cli.trial_pool import try_start
from dspool.config import LMProfile, PoolConfig
from dspool.config.base import without_secrets
from dspool.core.wording import counted
from dspool.errors import ConfigError, PoolError, WorkerStartFailed
from dspool.proxies import is_loopback, proxy_for
from dspool.runtime import forkserver
from dspool.runtime.forkserver import ParentReport, StartMethod
from dspool.store.place import node_of_store

_STORE_S = 5.0
_ENDPOINT_S = 3.0
_PRELOAD_S = 120.0
_LITTLE_MB = 200.0
_CHOOSE_HOST = "choose an IP address of this machine with --host"
_EXEC = "workers start slower and share no memory"


def state_directory(directory: Path) -> Finding:
    check = "state directory"
    if (found := preflight.state_directory(directory)) is not None:
        return of(check, found)
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free_mb = os.statvfs(existing).f_bavail * os.statvfs(existing).f_frsize / 2**20
    if free_mb < _LITTLE_MB:
        said = f"{directory}, {free_mb:.0f} MB free"
        meaning = "when it is full nothing new is kept; sessions, values and versions are read on"
        return warn(check, said, meaning, "make room on that disk")
    return ok(check, str(directory) if existing == directory else f"{directory} (will be created)")


def ray_cluster(address: str | None) -> tuple[list[Finding], list[str]]:
    """Whether the cluster at `address` can be joined, and the ids of its nodes; nothing without an address."""
    if address is None:
        return [], []
    check = "ray cluster"
    # Ray takes a second to import, and most who ask have no cluster.
    from dspool.runtime import cluster

    try:
        nodes = cluster.nodes_at(address)
    except WorkerStartFailed as failed:
        return [of_error(check, failed, "`dspool up --address` fails", "start it, and set its token")], []
    return [ok(check, f"{counted(len(nodes), 'node')} at {address}")], nodes


def store(
    config: PoolConfig, nodes: Sequence[str] = (), *, running: bool = False, address: str | None = None
) -> Finding:
    """`nodes` of the Ray cluster at `address` that the service runs on, or is to; none if that will be its own."""
    check = "store"
    url = config.store_url or f"sqlite:///{config.state_dir / 'sessions.db'}"
    shown = without_secrets(url)
    if nodes:
        try:
            _node_of_store(config.name, url, nodes, address)
        except ConfigError as refused:
            advice = "set store_url to a PostgreSQL server that all nodes reach"
            if not running:
                return fail(check, refused.message, "`dspool up --address` is refused", advice)
            found = f"{shown} is on one of {len(nodes)} nodes: others joined after the start"
            meaning = "its sessions are away as long as that node is, and lost with its disk"
            return warn(check, found, meaning, advice)
    # SQLAlchemy is a third of what the command line imports, and only this check needs it.
    from dspool.store.failures import obstacle_of
    from dspool.store.schema import parse_url

    try:
        parsed = parse_url(url)
        if parsed.get_backend_name() == "sqlite":
            path = Path(parsed.database or "")
            if not path.exists():
                return ok(check, f"{shown} (will be created)")
            _look_into(path)
        else:
            asyncio.run(_connect(parsed))
    except PoolError as refused:
        return of_error(check, refused, "no session can be kept", "correct store_url")
    except Exception as failed:
        if (cause := obstacle_of(failed, parsed)) is not None:
            return of(check, cause)
        # The text may hold the password; the kind and the address do not.
        found = f"{shown}: {type(failed).__name__}"
        return fail(
            check, found, "no session can be opened or changed", "start the database, or correct store_url"
        )
    return ok(check, shown)


def _node_of_store(pool: str, url: str, nodes: Sequence[str], address: str | None) -> str | None:
    """Raises: ConfigError: see `node_of_store`."""
    if address is None or not url.startswith("sqlite"):
        return node_of_store(url, nodes)
    from dspool.runtime import store_place

    return store_place.find_node_at(address, pool, url)


def _look_into(path: Path) -> None:
    """Raises: StoreFailed: a newer dspool wrote it. sqlite3.Error: it is locked, or no database."""
    from dspool.store.migrations import known_version

    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_STORE_S)) as to:
        if to.execute("select 1 from sqlite_master where name = 'schema_version'").fetchone():
            known_version(to.execute("select version from schema_version").fetchone()[0])
    if os.access(path, os.W_OK):
        with closing(sqlite3.connect(path, isolation_level=None, timeout=_STORE_S)) as to:
            # Who holds the lock for longer keeps a store from opening.
            to.execute("begin immediate")
            to.execute("rollback")


async def _connect(url: Any) -> None:
    from sqlalchemy import inspect

    from dspool.store.migrations import known_version
    from dspool.store.schema import create_engine

    engine = create_engine(url)
    try:
        async with asyncio.timeout(_STORE_S), engine.connect() as connection:
            if await connection.run_sync(lambda to: inspect(to).has_table("schema_version")):
                rows = await connection.exec_driver_sql("select version from schema_version")
                known_version(rows.scalar_one())
    finally:
        await engine.dispose()


def access(config: PoolConfig, environ: Mapping[str, str] = os.environ) -> Finding:
    """Who gets in: whether the tokens can be read, and are there where the network reaches the service."""
    check, advice = "access", _CHOOSE_HOST
    try:
        checked_host(config.service.host, tokens=True)
        advice = "make tokens with `dspool token new`, in a file that only its owner reads"
        host, tokens = admitted_host(config.service, environ)
    except PoolError as refused:
        return of_error(check, refused, "`dspool up` refuses to start", advice)
    return ok(check, f"{counted(tokens, 'token')} for {host}" if tokens else f"everybody on {host}")


def port(config: PoolConfig, run: ServiceRun | None) -> Finding:
    """`run` is the living service of this state directory, if there is one."""
    number = config.service.port
    try:
        host = checked_host(config.service.host, tokens=True)
        if run is not None and run.url.endswith(f":{number}"):
            return ok("port", f"{number} on {host} is used by the service itself")
        checked_port(host, number)
    except PoolError as refused:
        return of_error("port", refused, "`dspool up` refuses to start", _CHOOSE_HOST)
    return ok("port", f"{number} on {host} is free" if number else "any free one")


def imports(config: PoolConfig) -> list[Finding]:
    """Whether what the configuration names can be imported, tried in a process of its own."""
    check = "imports"
    named = named_in(config)
    if not named:
        return [ok(check, "the configuration names no code")]
    findings = [
        of(check, met("not_importable", keys=failure.keys, why=str(failure.error)))
        for failure in try_imports(config)
    ]
    return findings or [ok(check, f"{len(named)} of {len(named)} import paths")]


def programs(config: PoolConfig) -> Finding:
    """Whether a worker becomes warm with them, tried with one."""
    check = "programs"
    if not config.programs and config.setup is None and not config.warmup.steps:
        return ok(check, "the one that dspool brings")
    try:
        try_start(config)
    except PoolError as failed:
        return of_error(check, failed, "no worker becomes ready", "correct what it names")
    return ok(check, f"a worker loads {', '.join(config.programs)}")


def language_models(config: PoolConfig, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    check = "language model"
    models = {name: found for name, found in config.lm_profiles.items() if found.engine != "offline"}
    if not models:
        meaning = "answers come from the offline engine inside dspool, which is no language model"
        return [warn(check, "none is configured", meaning, "set lm_profiles (docs/how-to/deploy.md)")]
    findings = []
    for name, profile in models.items():
        said = f"{name}: {profile.model}"
        if (refused := _key_refused(profile, environ)) is not None:
            findings.append(of(check, met("bad_key", profile=name, why=refused.message)))
        elif (away := _endpoint(name, profile)) is not None:
            findings.append(of(check, away))
        elif profile.engine == "litellm" and find_spec("litellm") is None:
            found = f"{said} needs litellm, which is not installed"
            findings.append(fail(check, found, "each call fails", 'pip install "dspool[litellm]"'))
        else:
            findings.append(ok(check, said))
    return findings


def _endpoint(name: str, profile: LMProfile) -> Obstacle | None:
    """Whether somebody listens where the profile's calls go: the endpoint, or the proxy before it."""
    if not (url := profile.endpoint) or (host := urlsplit(url).hostname) is None:
        return None
    target = urlsplit(url)
    port = target.port or (443 if target.scheme == "https" else 80)
    proxy = None if is_loopback(host) else proxy_for(url)
    to = (host, port) if proxy is None else _place(proxy)
    try:
        socket.create_connection(to, timeout=_ENDPOINT_S).close()
    except OSError as failed:
        why = failed.strerror or "no answer"
        place = f"{host}:{port}"
        if proxy is not None:
            return met("proxy_unreachable", profile=name, place=place, proxy=proxy, why=why)
        return met("model_unreachable", profile=name, place=place, why=why)
    return None


def _place(proxy: str) -> tuple[str, int]:
    split = urlsplit(f"//{proxy}")
    return split.hostname or proxy, split.port or 80


def _key_refused(profile: LMProfile, environ: Mapping[str, str]) -> ConfigError | None:
    try:
        profile.api_key(environ)
    except ConfigError as refused:
        return refused
    return None


def why_not_shared(modules: tuple[str, ...]) -> str:
    """Why a parent that has loaded these could not fork, tried in a process of its own; nothing if it could."""
    program = (
        "import sys\n"
        "from dspool.runtime.forkserver.preload import Unshareable, preload\n"
        "from dspool.runtime.forkserver.places import Unavailable\n"
        "try: preload(sys.argv[1:])\n"
        "except Unshareable as why: print(f'{why.module} is not shared: {why}'); sys.exit(7)\n"
        "except Unavailable as why: print(why); sys.exit(7)\n"
    )
    command = [sys.executable, "-c", program, *modules]
    with contained(command, stderr=subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=_PRELOAD_S)
        except subprocess.TimeoutExpired:
            return f"what workers load is not loaded after {_PRELOAD_S:g} s"
    if process.returncode == 7:
        return output.decode(errors="replace").strip().splitlines()[-1]
    if process.returncode != 0:
        last = (errors.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        return f"loading what workers need failed: {last[:200]}"
    return ""


def fork_server(
    config: PoolConfig,
    how: StartMethod | None = None,
    load: Callable[[tuple[str, ...]], str] = why_not_shared,
) -> Finding:
    """Whether workers can be forked here: loads what their parent would."""
    check = "fork server"
    if config.worker_start == "exec":
        return ok(check, "not used: worker_start is exec")
    how = how or forkserver.start_method(config, {})
    if how.py_executable is None:
        return warn(check, how.why_not, _EXEC, "set worker_start: exec to say that this is meant")
    if why_not := load(forkserver.modules_of(config)):
        advice = "take what opens files or starts threads out of preload and warmup.steps, or set worker_start: exec"
        return warn(check, why_not, _EXEC, advice)
    return ok(check, "workers are forked")


def parents(found: Sequence[ParentReport]) -> list[Finding]:
    """The parents of a running service's workers."""
    check, findings = "fork parent", []
    for parent in found:
        if parent.exec_only:
            advice = f"see {parent.directory / 'log'}; it is tried again after a minute"
            findings.append(warn(check, parent.exec_only, _EXEC, advice))
        elif parent.pid is None:
            meaning = "it crashed, hangs, or has just ended because no worker was left; the next worker starts another"
            findings.append(
                warn(check, f"{parent.directory.name} does not answer", meaning, "nothing, or see its log")
            )
        else:
            said = f"process {parent.pid}: {counted(len(parent.workers), 'worker')} of {parent.forked} forked live"
            findings.append(ok(check, said))
            for module, why in parent.left_out.items():
                advice = "take that out of what is imported, or take the module out of preload"
                findings.append(warn(check, f"{module} is not shared: {why}", _EXEC, advice))
    return findings


def running(seen: dict[str, Any]) -> list[Finding]:
    """What `overview.status` saw of the service of this state directory."""
    check = "service"
    if not seen["running"]:
        if seen["stale"]:
            meaning = "the last one ended without cleaning up"
            return [warn(check, "not running", meaning, "`dspool up` removes what it left; or `dspool down`")]
        return [ok(check, "not running")]
    if seen.get("unknown"):
        return [warn(check, "not there", "the file has it, the service does not", "`dspool apply` starts it")]
    where = seen["url"] or f"pid {seen['pid']}"
    pool = seen["status"]
    if pool is None:
        return [
            fail(check, f"{where}: {seen['why']}", "clients get no answer", "see its log, or `dspool down`")
        ]
    findings = []
    if not pool["ready"]:
        why = pool["reason"] or "too few workers are warm"
        said = f"{where} is {pool['state']}: {why}"
        findings.append(fail(check, said, "operations wait or are refused", "dspool events"))
    elif pool["state"] != "ready":
        said = f"{where} is {pool['state']}{': ' + pool['reason'] if pool['reason'] else ''}"
        findings.append(warn(check, said, "it serves, but not as it should", "dspool status; dspool events"))
    else:
        findings.append(ok(check, f"{where} is ready with {counted(pool['actual'], 'worker')}"))
    starts = [worker.get("start", "") for worker in pool["workers"]]
    for why, number in Counter(start for start in starts if ": " in start).items():
        method, _, reason = why.partition(": ")
        said = (
            f"{counted(number, 'worker')} {'was' if number == 1 else 'were'} not forked: {reason}"
            if method == "exec"
            else f"{counted(number, 'worker')}: {reason}"
        )
        findings.append(warn("worker start", said, _EXEC, "correct the reason, or set worker_start: exec"))
    if seen["metrics"] is None and seen.get("metrics_why"):
        findings.append(
            warn("metrics", seen["metrics_why"], "dashboards and sizing see nothing", "dspool events")
        )
    return findings


def session_directory(run: ServiceRun | None) -> Path | None:
    """Ray's directory on this machine for a service that started its own Ray."""
    if run is None or run.temp_dir is None:
        return None
    found = Path(run.temp_dir) / "ray" / "session_latest"
    return found if found.is_dir() else None
