"""The running service as the commands talk to it: one pool of it, over HTTP."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from dspool.cli.output import Output, guarded
from dspool.cli.run_file import RunFile, ServiceRun
from dspool.config import load_config
from dspool.config.secret_values import secret_of
from dspool.errors import PoolNotReady
from dspool.remote import BlockingRemotePool, RemotePool

HTTP_TIMEOUT_S = 10.0


def run_file(config: Path | None, state_dir: Path | None) -> RunFile:
    """Where the service is written down that the options `--config` and `--state-dir` mean."""
    cli = {"state_dir": None if state_dir is None else str(state_dir)}
    return RunFile(load_config(cli=cli, file=config).config.state_dir)


def running_pool(file: RunFile, pool: str | None = None) -> BlockingRemotePool:
    """`pool` of the service of this run file, by default the one it was started for.

    Raises:
        PoolNotReady: nothing runs, or it is still starting.
    """
    return pool_of(running(file), pool)


@contextmanager
def serving(
    out: Output, config: Path | None, state_dir: Path | None, pool: str | None
) -> Iterator[BlockingRemotePool]:
    """The pool that a command's options mean, for as long as it asks; what fails is one line and an exit code."""
    with guarded(out), running_pool(run_file(config, state_dir), pool) as served:
        yield served


def running(file: RunFile) -> ServiceRun:
    """The service of this run file. Raises: PoolNotReady: nothing runs."""
    run = file.living()
    if run is None:
        raise PoolNotReady(nothing_runs(file), running=False)
    return run


def nothing_runs(file: RunFile) -> str:
    """What to say of it, and what to do."""
    stale = "; the last one ended without cleaning up" if file.read() is not None else ""
    return f"no service runs from {file.state_dir}{stale}; start one with `dspool up`"


def pool_of(run: ServiceRun, pool: str | None = None) -> BlockingRemotePool:
    """Raises: PoolNotReady: it is still starting."""
    # Who sits at a terminal sees what is wrong, and asks again.
    return BlockingRemotePool(timeout_s=HTTP_TIMEOUT_S, attempts=1, **_reached(run, pool))


def remote_pool(run: ServiceRun, pool: str | None = None, *, priority: str | None = None) -> RemotePool:
    """The same on this thread's event loop, for many operations: each has its time, and is sent again as needed.

    Raises: PoolNotReady: it is still starting.
    """
    return RemotePool(priority=priority, **_reached(run, pool))


def _reached(run: ServiceRun, pool: str | None) -> dict[str, Any]:
    if not run.url:
        raise PoolNotReady(f"pool {run.pool} (pid {run.pid}) is still starting")
    token = secret_of(os.environ, "DSPOOL_TOKEN")
    return {"url": run.url, "pool": pool or run.pool, "token": token, "transport": transport_of(run)}


def transport_of(run: ServiceRun) -> httpx.AsyncBaseTransport:
    """A way to a service of this machine: without the environment's proxies, and trusting its own certificate,
    whatever name stands in it."""
    trust: ssl.SSLContext | bool = True
    if run.tls_cert is not None:
        trust = ssl.create_default_context(cafile=run.tls_cert)
        trust.check_hostname = False
    return httpx.AsyncHTTPTransport(verify=trust, trust_env=False)


def asks_for_token(run: ServiceRun) -> bool:
    """Whether the service lets nobody in without a token; so it is taken to be when it does not answer."""

    async def ask() -> bool:
        async with httpx.AsyncClient(transport=transport_of(run), timeout=HTTP_TIMEOUT_S) as http:
            return (await http.get(f"{run.url}/v1/pools")).status_code != 200

    try:
        return asyncio.run(ask())
    except httpx.TransportError:
        return True


def serving_version(run: ServiceRun) -> str | None:
    """Of the dspool that answers HTTP there; None: it does not say."""

    async def ask() -> str:
        async with httpx.AsyncClient(transport=transport_of(run), timeout=HTTP_TIMEOUT_S) as http:
            return str((await http.get(f"{run.url}/healthz")).json()["version"])

    try:
        return asyncio.run(ask())
    except (httpx.TransportError, ValueError, KeyError):
        return None


def standing_alerts(pool: BlockingRemotePool) -> list[dict[str, Any]]:
    """The alerts that fire or are about to, as the service's dashboard has them; those that fire first."""
    alerts = pool.look("alerts")["alerts"]
    standing = [alert for alert in alerts if alert["state"] in ("firing", "pending")]
    return sorted(standing, key=lambda alert: alert["state"])


def as_json(answer: Any) -> Any:
    """What the service answered, as `--json` prints it."""
    return msgspec.to_builtins(answer, str_keys=True)
