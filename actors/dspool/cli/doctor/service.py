"""Checks of the configuration, and of what runs with it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dspool.cli.address import checked_port
from dspool.cli.doctor.findings import Finding, fail, ok, warn
from dspool.cli.run_file import ServiceRun
from dspool.cli.trial_import import TRIAL_S, named_in, try_imports
from dspool.config import LMProfile, PoolConfig
from dspool.config.base import without_secrets
from dspool.core.wording import counted
from dspool.errors import ConfigError, PoolError, WorkerStartFailed
from dspool.runtime import forkserver
from dspool.runtime.forkserver import ParentReport, StartMethod
from dspool.store.place import node_of_store

_STORE_S = 5.0
_PRELOAD_S = 120.0
_LITTLE_MB = 200.0
_EXEC = "workers start slower and share no memory"


def state_directory(directory: Path) -> Finding:
    check = "state directory"
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        if not existing.is_dir():
            raise NotADirectoryError(None, f"{existing} is not a directory")
        # Permissions alone do not tell: it may be a read-only file system.
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".dspool-doctor-"):
            pass
    except OSError as failed:
        found = f"{directory}: {failed.strerror}"
        return fail(
            check, found, "sessions cannot be kept: nothing starts", "choose another with --state-dir"
        )
    free_mb = os.statvfs(existing).f_bavail * os.statvfs(existing).f_frsize / 2**20
    if free_mb < _LITTLE_MB:
        found = f"{directory}, {free_mb:.0f} MB free"
        return warn(check, found, "changes of sessions are refused when it is full", "make room on that disk")
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
        advice = "start it, and set RAY_AUTH_MODE and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as it has them"
        return [fail(check, failed.message, "`dspool up --address` fails", advice)], []
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
    from dspool.store.schema import parse_url

    try:
        parsed = parse_url(url)
        if parsed.get_backend_name() == "sqlite":
            path = Path(parsed.database or "")
            if not path.exists():
                return ok(check, f"{shown} (will be created)")
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                connection.execute("select count(*) from sqlite_master").fetchone()
        else:
            asyncio.run(_connect(parsed))
    except PoolError as refused:
        return fail(check, refused.message, "no session can be kept", "correct store_url")
    except Exception as failed:
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


async def _connect(url: Any) -> None:
    from dspool.store.schema import create_engine

    engine = create_engine(url)
    try:
        async with asyncio.timeout(_STORE_S), engine.connect() as connection:
            await connection.exec_driver_sql("select 1")
    finally:
        await engine.dispose()


def port(config: PoolConfig, run: ServiceRun | None) -> Finding:
    """`run` is the living service of this state directory, if there is one."""
    host, number = config.service.host, config.service.port
    if run is not None and run.url.endswith(f":{number}"):
        return ok("port", f"{number} on {host} is used by the service itself")
    try:
        checked_port(host, number)
    except PoolError as taken:
        return fail("port", taken.message, "`dspool up` refuses to start", "choose another with --port")
    return ok("port", f"{number} on {host} is free" if number else "any free one")


def imports(config: PoolConfig, *, timeout_s: float = TRIAL_S) -> list[Finding]:
    """Whether what the configuration names can be imported, tried in a process of its own."""
    check = "imports"
    named = named_in(config)
    if not named:
        return [ok(check, "the configuration names no code")]
    findings = [
        fail(
            check,
            f"{failure.keys}: {failure.error}",
            "no worker becomes ready",
            "correct that line, or install what is missing where workers run",
        )
        for failure in try_imports(config, timeout_s=timeout_s)
    ]
    return findings or [ok(check, f"{len(named)} of {len(named)} import paths")]


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
            set_it = f"export {profile.api_key_env}=... on every node"
            fix = set_it if refused.details.get("rule") == "set" else "put the key there and nothing else"
            found = f"{said}, but {refused.message.removeprefix('the environment variable ')} here"
            findings.append(fail(check, found, "its provider refuses each call", fix))
        elif profile.engine == "litellm" and find_spec("litellm") is None:
            found = f"{said} needs litellm, which is not installed"
            findings.append(fail(check, found, "each call fails", 'pip install "dspool[litellm]"'))
        else:
            findings.append(ok(check, said))
    return findings


def _key_refused(profile: LMProfile, environ: Mapping[str, str]) -> ConfigError | None:
    try:
        profile.api_key(environ)
    except ConfigError as refused:
        return refused
    return None


def fork_server(config: PoolConfig, how: StartMethod | None = None, why_not: str | None = None) -> Finding:
    """Whether workers can be forked here: loads in a process of its own what their parent would."""
    check = "fork server"
    if config.worker_start == "exec":
        return ok(check, "not used: worker_start is exec")
    how = how or forkserver.start_method(config, {})
    if how.py_executable is None:
        return warn(check, how.why_not, _EXEC, "set worker_start: exec to say that this is meant")
    why_not = _preload(config) if why_not is None else why_not
    if why_not:
        advice = "take what opens files or starts threads out of preload and warmup.steps, or set worker_start: exec"
        return warn(check, why_not, _EXEC, advice)
    return ok(check, "workers are forked")


def _preload(config: PoolConfig) -> str:
    """Why a parent of this configuration could not fork; nothing if it could."""
    program = (
        "import sys\n"
        "from dspool.runtime.forkserver.preload import Unshareable, preload\n"
        "from dspool.runtime.forkserver.places import Unavailable\n"
        "try: preload(sys.argv[1:])\n"
        "except Unshareable as why: print(f'{why.module} is not shared: {why}'); sys.exit(7)\n"
        "except Unavailable as why: print(why); sys.exit(7)\n"
    )
    command = [sys.executable, "-c", program, *forkserver.modules_of(config)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PRELOAD_S, check=False)
    except subprocess.TimeoutExpired:
        return f"what workers load is not loaded after {_PRELOAD_S:g} s"
    if done.returncode == 7:
        return done.stdout.strip().splitlines()[-1]
    if done.returncode != 0:
        return (
            f"loading what workers need failed: {(done.stderr.strip().splitlines() or ['no word'])[-1][:200]}"
        )
    return ""


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
