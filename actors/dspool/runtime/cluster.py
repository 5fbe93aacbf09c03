"""A Ray cluster: starting one, finding pools in it, asking actors."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from dspool import private_files
from dspool.causes import met
from dspool.core.lifecycle.placement import ClusterNode
from dspool.errors import (
    InternalError,
    PoolClosed,
    PoolError,
    PoolNotReady,
    UnknownPool,
    WorkerLost,
    suggestion,
)
from dspool.runtime.forkserver.node_parent import (
    ON_LOOPBACK,
    TOKEN_FILE,
    node_settings,
    running_parent,
    token_variables,
)
from dspool.runtime.node import START_S, own_node
from dspool.runtime.session_logs import kept_short

NAMESPACE = "dspool"
MAX_CONCURRENCY = 10_000
"""Calls that an async actor takes at once: long polls wait there, and must not hold up others."""
NODE_LABEL = "ray.io/node-id"
HEAD_RESOURCE = "node:__internal_head__"
"""Ray's resource that the head node alone has."""
_RESTART_S = 20.0
"""How long callers wait for a supervisor to come back."""
_RETRY_S = 0.1
_WHY_DEAD = re.compile(r"The actor is dead because (.+?)\.(?:\s|$)")
_EXIT_DETAIL = re.compile(r"exit code \d+|\bSIG[A-Z]+|(?:running )?low on memory")


@contextmanager
def own_cluster(
    prefix: str = "dsp-", load: Mapping[str, Any] | None = None, *, patience_s: float = START_S
) -> Iterator[Path]:
    """Run a Ray cluster of our own on this machine during the block; yields its directory, which only we can enter.

    Its workers are forked from a parent that has loaded `load` (`forkserver.to_load`). Joining it needs its token, see
    `own_token`; children of this process have it. Socket paths have at most 107 bytes, hence a short directory with a
    short `prefix`.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    # Workers start fast by compiled modules.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        with (
            _environment(node_settings(os.environ)),
            own_token(directory),
            on_loopback(),
            kept_short(directory),
            running_parent(directory, load) as parent,
        ):
            try:
                with own_node(parent, patience_s=patience_s):
                    ray.init(
                        address="local",
                        namespace=NAMESPACE,
                        # Ray opens its own directory, and the sockets in it, to all users of the machine.
                        _temp_dir=str(directory / "ray"),
                        include_dashboard=False,
                        logging_level=logging.WARNING,
                        log_to_driver=False,
                    )
                yield directory
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def join_cluster(address: str) -> None:
    with reaching(address):
        ray.init(address=address, namespace=NAMESPACE, logging_level=logging.WARNING, log_to_driver=False)


def node_address() -> str:
    """The address under which other nodes reach this one."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


def living_nodes() -> list[str]:
    """Ids of the nodes of this process's cluster."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["NodeID"] for node in nodes if node["Alive"]]


def placeable_nodes(with_resources: bool) -> list[ClusterNode]:
    """The living nodes of this process's cluster, with what is free on each only if it is asked for."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    state: Any = ray._private.state
    free: Mapping[str, Any] = state.available_resources_per_node() if with_resources else {}
    return [
        ClusterNode(
            node["NodeID"],
            node.get("Labels", {}),
            free.get(node["NodeID"], {}),
            node["NodeManagerAddress"],
            HEAD_RESOURCE in node["Resources"],
        )
        for node in nodes
        if node["Alive"]
    ]


def nodes_at(address: str) -> list[str]:
    """Ids of the nodes of the cluster at `address`; joins it for a moment, with the operator's token.

    Raises:
        WorkerStartFailed: it cannot be joined.
    """
    try:
        join_cluster(address)
    except Exception as failed:
        # Ray raises errors of many kinds here, even bare ones.
        raise met("no_cluster", address=address, why=type(failed).__name__).error() from failed
    try:
        return living_nodes()
    finally:
        ray.shutdown()


def dashboard_url() -> str | None:
    """The URL of Ray's dashboard of this process's cluster; None if there is none."""
    node: Any = ray._private.worker._global_node
    url = node.webui_url if node is not None else None
    return f"http://{url}" if url else None


async def ask(handle: ActorHandle[Any], method: str, *args: Any, **kwargs: Any) -> Any:
    """Call an actor and wait for its answer.

    Raises:
        PoolError: what the actor raised; `WorkerLost` when it is gone.
    """
    try:
        return await _call(handle, method, *args, **kwargs)
    except RayActorError as died:
        raise WorkerLost(f"the actor that was asked for {method} is gone: {cause(died)}") from died


async def ask_supervisor(handle: ActorHandle[Any], method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method that may run twice; while Ray restarts the supervisor, wait for it.

    Raises:
        PoolError: what the supervisor raised.
        PoolClosed: the pool has ended.
        PoolNotReady: the supervisor did not come back in time; traffic goes on meanwhile.
    """
    deadline = time.monotonic() + _RESTART_S
    while True:
        try:
            return await _call(handle, method, *args, **kwargs)
        except ActorDiedError as died:
            raise PoolClosed(f"this pool has ended ({cause(died)})") from died
        except RayActorError as away:
            if time.monotonic() > deadline:
                raise PoolNotReady(
                    f"the pool's supervisor is being restarted: {cause(away)}", retry_after_s=1.0
                ) from away
            await asyncio.sleep(_RETRY_S)


async def _call(handle: ActorHandle[Any], method: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return await getattr(handle, method).remote(*args, **kwargs)
    except RayTaskError as failed:
        error = failed.cause
        if isinstance(error, PoolError):
            raise error from None
        raise InternalError(f"{method} failed: {type(error).__name__}: {error}") from failed
    except RayActorError:
        raise
    except RayError as failed:
        raise InternalError(f"{method} could not be asked: {type(failed).__name__}") from failed


def actor_name(pool: str, role: str) -> str:
    return f"dspool:{pool}:{role}"


def find_supervisor(pool: str) -> ActorHandle[Any]:
    """Raises: UnknownPool: no such pool on this cluster."""
    try:
        return ray.get_actor(actor_name(pool, "supervisor"), namespace=NAMESPACE)
    except ValueError:
        known = list_pools()
        raise UnknownPool(
            f"there is no pool {pool!r} on this cluster{suggestion(pool, known)} (pools here: "
            f"{', '.join(known) or 'none'})",
            pool=pool,
        ) from None


async def find_actor(pool: str, role: str) -> ActorHandle[Any]:
    """An actor of a pool, off the event loop: Ray asks its control plane and blocks until that answers.

    Raises:
        ValueError: there is none.
    """
    return await asyncio.to_thread(ray.get_actor, actor_name(pool, role), namespace=NAMESPACE)


def list_pools() -> list[str]:
    """Names of the pools on this cluster, sorted."""
    return sorted(name.split(":")[1] for name in actor_names("dspool:") if name.endswith(":supervisor"))


def actor_names(prefix: str) -> list[str]:
    names = [
        actor["name"] or ""
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE
    ]
    return [name for name in names if name.startswith(prefix)]


def cause(died: RayActorError) -> str:
    """Why, in the words of Ray's report, without its context and its guesses."""
    lines = [line.strip() for line in str(died).splitlines() if line.strip()]
    if "creation task" in lines[0]:
        return _short(lines[-1])
    # With guesses Ray does not know it.
    said = " ".join(lines).partition("Some common causes")[0]
    if (why := _WHY_DEAD.search(said)) is None:
        return _short(f"{type(died).__name__}: {lines[0]}")
    reason, detail = why[1].replace("worker process has died", "process ended"), _EXIT_DETAIL.search(said)
    return f"{reason} ({detail[0]})" if detail else reason


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


@contextmanager
def own_token(directory: Path) -> Iterator[Path]:
    """Clusters that this process and its children start or join in the block need a new token; yields its file.

    Only we may be able to enter `directory`. Afterwards the file is gone, and the operator's own variables hold again.
    """
    path = directory / TOKEN_FILE
    descriptor = private_files.open_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    variables = {"RAY_AUTH_TOKEN": None, **token_variables(directory)}
    try:
        with _environment(variables, _read_token):
            yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Clusters that this process and its children start in the block are one node, which listens on 127.0.0.1 only.

    Else Ray takes the host's address in place of 127.0.0.1, and a node with such an address listens on all interfaces.
    """
    with _environment(ON_LOOPBACK, _read_switch):
        yield


def reaching(address: str) -> AbstractContextManager[None]:
    """In the block, `ray.init(address)` goes to `address`, also to a loopback one, for which Ray takes the host's."""
    from ray._raylet import is_localhost, parse_address  # type: ignore[attr-defined]

    host = (parse_address(address) or [""])[0]
    return on_loopback() if is_localhost(host) else nullcontext()


@contextmanager
def _environment(
    variables: Mapping[str, str | None], read: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """`variables` hold in the block. `read` makes Ray read those that it read when it was imported."""
    earlier = {name: os.environ.get(name) for name in variables}
    try:
        _set(variables)
        read()
        yield
    finally:
        _set(earlier)
        read()


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _read_token() -> None:
    # Ray keeps the first token that it finds.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _read_switch() -> None:
    constants: Any = ray._private.ray_constants
    constants.ENABLE_RAY_CLUSTER = constants.env_bool(*ON_LOOPBACK, not constants.IS_WINDOWS_OR_OSX)
