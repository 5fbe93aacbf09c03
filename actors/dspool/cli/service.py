"""The running service as the commands talk to it: one pool of it, over HTTP."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from dspool.cli.run_file import RunFile, ServiceRun
from dspool.config import load_config
from dspool.errors import InvalidRequest, PoolError, PoolNotReady, UnknownPool, from_wire
from dspool.remote.requests import Events, problem_of

HTTP_TIMEOUT_S = 10.0


def run_file(config: Path | None, state_dir: Path | None) -> RunFile:
    """Where the service is written down that the options `--config` and `--state-dir` mean."""
    cli = {"state_dir": None if state_dir is None else str(state_dir)}
    return RunFile(load_config(cli=cli, file=config).config.state_dir)


class ServiceClient:
    """Answers are JSON as it came. Every method raises what the service refused with, as the error it is.

    Raises:
        PoolNotReady: nothing runs, or it does not answer.
    """

    def __init__(self, run: ServiceRun, pool: str | None = None) -> None:
        self.run = run
        self.pool = pool or run.pool

    @classmethod
    def of(cls, file: RunFile, pool: str | None = None) -> ServiceClient:
        """The one of this run file; `pool` is one of its pools, by default the one it was started for."""
        run = file.read()
        if run is None or not run.alive():
            raise PoolNotReady(f"no service runs from {file.state_dir}; start one with `dspool up`")
        return cls(run, pool)

    def get(self, path: str = "", query: dict[str, str | int] | None = None) -> Any:
        """`path` is below the pool's."""
        return self._ask("GET", path, query=query)

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str | int] | None = None,
        timeout_s: float | None = HTTP_TIMEOUT_S,
    ) -> Any:
        """`timeout_s` None waits for the answer as long as it takes."""
        return self._ask("POST", path, body=body, query=query, timeout_s=timeout_s)

    def stream(self, path: str, body: Any) -> Iterator[tuple[str, Any]]:
        """The events that a POST answers with: names and data."""
        events = Events()
        try:
            with (
                self._http(None) as http,
                http.stream("POST", self._path(path), json=body) as answer,
            ):
                if answer.status_code != 200:
                    self._refused(answer.status_code, answer.read(), answer.headers)
                for line in answer.iter_lines():
                    event = events.line(line)
                    if event is not None and event[0] == "error":
                        raise from_wire({**event[1], "message": event[1]["detail"]})
                    if event is not None:
                        yield event
        except httpx.HTTPError as failed:
            raise PoolNotReady(f"{self.run.url} does not answer ({type(failed).__name__})") from failed

    def worker_id(self, named: str) -> str:
        """The worker that `named` means: its id, or its ordinal.

        Raises:
            InvalidRequest: there is none; the message names those there are.
        """
        workers = self.get()["workers"]
        for worker in workers:
            if named in (worker["id"], str(worker["slot"])):
                return str(worker["id"])
        known = ", ".join(f"{worker['id']} (slot {worker['slot']})" for worker in workers) or "none"
        raise InvalidRequest(f"pool {self.pool} has no worker {named!r}; it has {known}", worker=named)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: dict[str, str | int] | None = None,
        timeout_s: float | None = HTTP_TIMEOUT_S,
    ) -> Any:
        try:
            with self._http(timeout_s) as http:
                answer = http.request(method, self._path(path), params=query, json=body)
        except httpx.HTTPError as failed:
            raise PoolNotReady(f"{self.run.url} does not answer ({type(failed).__name__})") from failed
        if answer.status_code >= 300:
            self._refused(answer.status_code, answer.content, answer.headers)
        try:
            return answer.json()
        except ValueError:
            raise UnknownPool(
                f"{self.run.url} answered with something else than JSON: not a dspool service?"
            ) from None

    def _http(self, timeout_s: float | None) -> httpx.Client:
        if not self.run.url:
            raise PoolNotReady(f"pool {self.run.pool} (pid {self.run.pid}) is still starting")
        # No proxy from the environment: this is our own machine.
        return httpx.Client(
            base_url=self.run.url,
            timeout=httpx.Timeout(timeout_s, connect=HTTP_TIMEOUT_S),
            trust_env=False,
            verify=_trust(self.run),
            headers=_identity(),
        )

    def _path(self, rest: str) -> str:
        return f"/v1/pools/{quote(self.pool, safe='')}{rest}"

    def _refused(self, status: int, body: bytes, headers: Any) -> None:
        failed = problem_of(status, body, headers)
        if type(failed) is PoolError and failed.code == "pool_error" and b'"code"' not in body:
            raise UnknownPool(f"{self.run.url} answered {status}: not a dspool service?")
        raise failed


def _identity() -> dict[str, str]:
    token = os.environ.get("DSPOOL_TOKEN")
    return {"authorization": f"Bearer {token}"} if token else {}


def _trust(run: ServiceRun) -> ssl.SSLContext | bool:
    """For a service of this machine: its own certificate, whatever name stands in it."""
    if run.tls_cert is None:
        return True
    context = ssl.create_default_context(cafile=run.tls_cert)
    context.check_hostname = False
    return context
