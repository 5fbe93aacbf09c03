"""What dspool corrects in the code of others, in one place: each piece with its versions, its reason and a switch.

`TABLE` lists them; the code is beside it: `dspy_calls`, `dspy_answers`, `dspy_signatures`, `dspy_settings`,
`dspy_threads`, `uvicorn_connections`, `serve_replica`, `serve_requests`, `haproxy_script`. A correction is on while it
holds for the installed versions and `DSPOOL_CORRECTIONS` does not leave it out. A version that it does not know turns
it off, with a warning. dspool serves without any of them; `without` says how.

`RELIANCES` is the other list: details of others that dspool cannot do without, and so cannot switch off.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of_package
from typing import Final, NamedTuple

from packaging.specifiers import SpecifierSet

from dspool.errors import ConfigError

log = logging.getLogger(__name__)


def installed_version(package: str) -> str:
    """Of a package, or of "python" itself. Raises PackageNotFoundError."""
    return platform.python_version() if package == "python" else version_of_package(package)


VARIABLE: Final = "DSPOOL_CORRECTIONS"
"""`all`, `none`, the names of those to keep (`a,b`), or of those to leave out (`-a,-b`)."""

Versions = Mapping[str, str]
"""Package -> the versions of it, as pip writes them."""

_DSPY: Final = {"dspy": "==3.4.*"}
_SERVE: Final = {"ray": "==2.60.*"}
_UVICORN: Final = {"uvicorn": ">=0.34,<0.55"}
"""Its protocol class and its server were the same in each of these that was tried: 0.34, 0.40, 0.47, 0.50, 0.54."""


class Correction(NamedTuple):
    name: str
    versions: Versions
    reason: str
    """What is wrong in their code, and what is done about it."""
    without: str
    """What a user meets when it is off."""
    upstream: str | None = None
    """Where it was said or changed there."""


class Reliance(NamedTuple):
    """A detail of others that a part of dspool is built on."""

    part: str
    versions: Versions
    reason: str
    otherwise: str
    """What another version leads to."""


class CorrectionState(NamedTuple):
    correction: Correction
    on: bool
    why: str = ""
    """Why it is off."""
    switched_off: bool = False
    """By `DSPOOL_CORRECTIONS`, and not for its versions."""


TABLE: Final = (
    Correction(
        "ray-lean-node",
        {"ray": "==2.60.*"},
        "A Ray of our own starts neither its autoscaler nor its log monitor, nor, without a dashboard, the dashboard's "
        "server; its workers, also Serve's, are forked from a process that loads while Ray starts; and it may take "
        "longer than 30 s to start.",
        "a start takes twice the processor time, and fails on a machine that is very busy",
    ),
    Correction(
        "dspy-model-table",
        _DSPY,
        "DSPy looks a model up in its table three times a call; a name that is not there is compared with all entries. "
        "Each is looked up once.",
        "over a millisecond of the event loop a call, for a model that DSPy's table does not have",
    ),
    Correction(
        "dspy-engine-choice",
        _DSPY,
        "DSPy chooses the engine and the provider of an LM twice a call. They are chosen once for each LM.",
        "a fifth more processor time a call, together with the two below",
    ),
    Correction(
        "dspy-proxy-route",
        _DSPY,
        "DSPy reads the environment's proxies up to four times a call. They are read once a host "
        "(a variable that changes later does not count).",
        "as above",
    ),
    Correction(
        "dspy-free-connection",
        _DSPY,
        "DSPy starts a timer and a task to wait for a connection, also when one is free. A free one is taken at once.",
        "as above",
    ),
    Correction(
        "dspy-transport",
        {**_DSPY, "httptools": ">=0.6"},
        "DSPy waits for each piece of an answer in a task with a timer, parses it in Python, and in a process of 1,024 "
        "open files keeps no connection. One protocol a connection takes answers in.",
        "twice the processor time of a call in the transport, and no kept connections in a worker of a thousand slots",
    ),
    Correction(
        "dspy-lean-call",
        _DSPY,
        "In each call DSPy works out the route, dialect, time-outs and price steps of a model again, and makes a queue "
        "for threads for each token. They are worked out once (a key that the environment gets later does not count).",
        "more processor time a call",
    ),
    Correction(
        "dspy-connection-limit",
        _DSPY,
        "DSPy gives one engine 100 connections and no way to ask for more. Each slot of a worker gets one.",
        "a worker with more than 100 slots has only 100 calls of a model under way",
    ),
    Correction(
        "dspy-short-hops",
        _DSPY,
        "An async call of DSPy goes through `asyncio.to_thread` three to five times for microseconds of work. Those "
        "functions run where they are called.",
        "more processor time a call: the hops cost more than the work",
        "https://github.com/python/cpython/issues/136084",
    ),
    Correction(
        "dspy-settings-context",
        _DSPY,
        "DSPy copies all of its settings three times for each `dspy.context`, of which a call has five to eight. They "
        "are copied once.",
        "more processor time a call",
    ),
    Correction(
        "dspy-attempt-output",
        # A name beside theirs: a module that no longer prints does not see it.
        {"dspy": ">=3.4"},
        "BestOfN and Refine print the exception of an attempt, which may quote the model's answer. It is not printed.",
        "parts of answers may stand in the output of workers",
    ),
    Correction(
        "dspy-list-items",
        {"dspy": ">=3.4"},
        "DSPy writes a list into a prompt, where a field says no type, only if all of it is text. Other items are "
        "written as JSON.",
        "a program asked with a list of numbers fails inside DSPy",
    ),
    Correction(
        "dspy-answer-repair",
        # As above: a parser of another name is left alone.
        {"dspy": ">=3.4"},
        "What DSPy repairs a model's JSON with looks ahead from each quote to the end, on the event loop. It stops "
        "after 30,000 steps.",
        "an answer of 6 kB that a caller has a model write stops a worker for seconds",
    ),
    Correction(
        "dspy-signature-text",
        # In place of one function: a version without it is left alone.
        {"dspy": ">=3.4"},
        "DSPy imports what a type in the text of a signature names, and pydantic evaluates a quoted one. Only types "
        "count that are there.",
        "a program that makes a signature of a caller's text runs what the caller likes",
    ),
    Correction(
        "dspy-plain-tools",
        _DSPY,
        "An agent that runs asynchronously calls plain tools on the event loop. They run in threads.",
        "a tool that waits for something stops its worker meanwhile; agents of a spec with plain tools run in threads",
    ),
    Correction(
        "dspy-stream-threads",
        _DSPY,
        "In a stream, DSPy fails to call a model in a thread that is not of anyio. Such a call does not stream.",
        "a program that calls its model in threads of its own cannot be streamed",
    ),
    Correction(
        "thread-context",
        {"python": ">=3.11"},
        "A thread knows nothing of who started it. One that a program starts, by whatever pool, has the program's LM, "
        "usage, trace and operation.",
        "threads of a program have no LM, and nobody counts or traces what they do",
        "https://docs.python.org/3.14/library/sys.html#sys.flags.thread_inherit_context",
    ),
    Correction(
        "dspy-program-settings",
        _DSPY,
        "`dspy.configure` changes the whole process, and only the thread that called it first may. A program's call "
        "changes the settings of that program.",
        "a program whose code calls `dspy.configure` cannot be loaded",
    ),
    Correction(
        "uvicorn-accept",
        _UVICORN,
        "The event loop accepts one connection a turn. The first of a burst now lets in all that wait.",
        "under load, the last of a hundred new connections waits a second for its turn",
        "https://github.com/libuv/libuv/pull/3696",
    ),
    Correction(
        "uvicorn-one-write",
        _UVICORN,
        "uvicorn writes head and body of an answer one after the other. They leave together.",
        "a fifth more processor time in the ingress, and HAProxy is woken twice an answer",
    ),
    Correction(
        "uvicorn-silence",
        _UVICORN,
        "uvicorn waits for a request's head for ever, and takes connections until no file can be opened. A connection "
        "without a whole head ends in seconds, and 200 files are kept for other things.",
        "who reaches a replica's port past HAProxy holds it up with connections that send nothing",
    ),
    Correction(
        "serve-disconnect",
        {**_UVICORN, **_SERVE},
        "Serve starts two tasks a request to notice that its client hung up. The connection itself cancels the "
        "request, and a stream without an end stops with its server.",
        "more processor time a request; a replica that stops waits for those who watch its dashboard",
        "https://github.com/ray-project/ray/pull/62867",
    ),
    Correction(
        "serve-lean-request",
        _SERVE,
        "Around each request Serve makes a context, takes a slot that is always free and keeps metrics of its own "
        "(`ray_serve_*` of requests; those of dspool have them all). The request goes straight to the application.",
        "more processor time a request",
    ),
    Correction(
        "serve-replica-address",
        _SERVE,
        "A replica listens for other replicas on all interfaces, whatever its node's address is: it listens there. For "
        "HTTP it listens at the service's address only: with several nodes it listens on loopback and at its node's "
        "address, where proxies look for it.",
        "a port that runs what is sent with Ray's token is open to the network; with several nodes and a service that "
        "is not on 0.0.0.0, requests go through Serve's slow proxy",
    ),
    Correction(
        "serve-replica-drain",
        _SERVE,
        "A replica closes its connections when its draining period is over, while a HAProxy from before a reload may "
        "still send it what clients ask over connections that were open: the client's connection breaks. It stays "
        "until those are gone, healthy for who looks, unless the whole service ends.",
        "a change of HTTP processes may break a request",
    ),
    Correction(
        "haproxy-loopback",
        _SERVE,
        "Serve binds HAProxy's metrics and statistics pages to all interfaces. They are bound to 127.0.0.1.",
        "both pages are open to the network",
        "https://github.com/ray-project/ray/issues/62976",
    ),
    Correction(
        "haproxy-leash",
        _SERVE,
        "HAProxy outlives a Serve that is killed. It ends with the process that started it, and its pid is kept.",
        "after a SIGKILL a HAProxy may be left, which keeps the port",
        "https://github.com/ray-project/ray/pull/64063",
    ),
    Correction(
        "haproxy-frontend",
        _SERVE,
        "Serve's template has no TLS, no bounds on connections and slow requests, and no error pages; it logs paths, "
        "shows routes, puts replicas on the service's address, and answers `x-request-timeout-seconds` in plain text.",
        "no TLS; no bounds on connections; what HAProxy and Serve refuse by themselves is no problem+json; slow "
        "requests reach a replica, which listens on the service's address",
        "https://github.com/ray-project/ray/pull/37951",
    ),
)

FORK_SERVER: Final = Reliance(
    "fork server",
    {"ray": "==2.60.*"},
    "A forked worker runs Ray's private worker program and waits for `ray._private.worker.connect`.",
    "workers start one by one (`worker_start: exec`)",
)
RELIANCES: Final = (
    FORK_SERVER,
    Reliance(
        "answer cache",
        {"dspy": "==3.4.*"},
        "It stands before the functions with which DSPy makes a call, and takes the place of `dspy.clients.Cache`, so "
        "that no caller gets an answer that another asked for.",
        "`cache: true` is refused where DSPy does not take it",
    ),
    Reliance(
        "model errors, adapters and streams",
        {"dspy": "==3.4.*"},
        "They name modules and functions of DSPy that are not documented.",
        "workers may not start, or tell an error as another",
    ),
    Reliance(
        "the service's address",
        {"ray": "==2.60.*"},
        "Serve's and Ray's private objects say where Serve and Ray's dashboard listen.",
        "`dspool up` may fail to start",
    ),
)


def active(name: str) -> bool:
    """Whether this process makes the correction `name`. Warns, once, of a version that turns it off.

    Raises:
        ConfigError: `DSPOOL_CORRECTIONS` cannot be read.
    """
    return _state(name, os.environ.get(VARIABLE, "all")).on


@functools.cache
def _state(name: str, choice: str) -> CorrectionState:
    (correction,) = (one for one in TABLE if one.name == name)
    (state,) = states({VARIABLE: choice}, table=(correction,))
    if not state.on and not state.switched_off:
        log.warning("correction %s is off: %s; %s", name, state.why, correction.without)
    return state


def states(
    environ: Mapping[str, str] = os.environ,
    version_of: Callable[[str], str] = installed_version,
    table: Iterable[Correction] = TABLE,
) -> list[CorrectionState]:
    """Each correction of `table`: on, or off and why.

    Raises:
        ConfigError: `DSPOOL_CORRECTIONS` cannot be read.
    """
    names = chosen(environ.get(VARIABLE, "all"))
    found = []
    for correction in table:
        if correction.name not in names:
            found.append(CorrectionState(correction, False, f"{VARIABLE} leaves it out", switched_off=True))
        else:
            why = unknown_version(correction.versions, version_of)
            found.append(CorrectionState(correction, not why, why))
    return found


def chosen(choice: str) -> frozenset[str]:
    """The names that a value of `DSPOOL_CORRECTIONS` leaves on.

    Raises:
        ConfigError: an unknown name, or names with and without a `-`.
    """
    every = frozenset(correction.name for correction in TABLE)
    if choice in ("", "all"):
        return every
    if choice == "none":
        return frozenset()
    words = [word.strip() for word in choice.split(",")]
    without = {word.removeprefix("-") for word in words if word.startswith("-")}
    names = without or set(words)
    if (without and len(without) < len(set(words))) or not names <= every:
        raise ConfigError(
            f"{VARIABLE} is `all`, `none`, or names of corrections with commas between, each with a `-` before it "
            f"to leave it out; got {choice[:80]!r}; there are {', '.join(sorted(every))}",
            key=VARIABLE,
        )
    return every - without if without else frozenset(names)


def unknown_version(versions: Versions, version_of: Callable[[str], str] = installed_version) -> str:
    """What of the installed packages is not among `versions`, in words; empty when all are."""
    for package, specifier in versions.items():
        try:
            version = version_of(package)
        except PackageNotFoundError:
            return f"{package} is not installed"
        if not SpecifierSet(specifier).contains(version, prereleases=True):
            return f"it holds for {package} {specifier}, and {version} is installed"
    return ""


__all__ = [
    "FORK_SERVER",
    "RELIANCES",
    "TABLE",
    "VARIABLE",
    "Correction",
    "CorrectionState",
    "Reliance",
    "active",
    "chosen",
    "states",
    "unknown_version",
]
