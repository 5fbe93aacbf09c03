"""What one session holds: program definitions, LM choice, variables, and a bounded memory of its operations."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import msgspec

from dspool.errors import InternalError, UnknownName, UnknownProgram
from dspool.messages import JSON, Change
from dspool.programs.program import Definition, Program

MAX_ENTRY_BYTES = 16_384
"""Inputs and outputs of a remembered operation are left out beyond this."""
MAX_HISTORY_BYTES = 524_288
"""Of one session; the oldest operations go first."""


class Host(Protocol):
    """What a session needs of the worker that it is on."""

    clock: Callable[[], float]

    def load(self, definition: Definition) -> Program:
        """A program built from `definition`. Raises `PoolError`."""


class LMChoice(NamedTuple):
    profile: str
    overrides: dict[str, JSON]


class Session:
    """One user's state on a worker. Its operations run one at a time, so nothing here locks."""

    __slots__ = (
        "_history_bytes",
        "_host",
        "_loaded",
        "created_at",
        "definitions",
        "errors",
        "history",
        "id",
        "last_used",
        "lm",
        "namespace",
        "operations",
        "principal",
        "tokens",
        "variables",
    )

    def __init__(self, host: Host, session_id: str, principal: str | None = None) -> None:
        self._host = host
        self._loaded: dict[str, Program] = {}
        self._history_bytes = 0
        self.id = session_id
        self.principal = principal
        self.created_at = self.last_used = host.clock()
        self.definitions: dict[str, Definition] = {}
        self.lm: LMChoice | None = None
        self.variables: dict[str, JSON] = {}
        self.namespace: dict[str, Any] = {}
        """What `execute_code` defined; lives as long as the worker keeps the session, never stored."""
        self.history: deque[tuple[dict[str, JSON], int]] = deque()
        self.operations = 0
        self.errors = 0
        self.tokens = 0

    @classmethod
    def rebuild(
        cls, host: Host, session_id: str, items: Iterable[Change], principal: str | None = None
    ) -> Session:
        """The session that the stored `items` describe. Programs are built at their first use."""
        session = cls(host, session_id, principal)
        for item in items:
            session._apply(item)
        return session

    def items(self) -> tuple[Change, ...]:
        """All that must outlive this process, as `rebuild` takes it."""
        programs = (Change("program", name, d.to_data()) for name, d in self.definitions.items())
        lm = (Change("lm", "lm", {"profile": c.profile, "overrides": c.overrides}) for c in (self.lm,) if c)
        variables = (Change("variable", name, {"value": value}) for name, value in self.variables.items())
        return (*programs, *lm, *variables)

    def program(self, name: str) -> Program:
        """Its own program `name`, built now if it was not yet.

        Raises:
            UnknownProgram: it has none of that name.
        """
        loaded = self._loaded.get(name)
        if loaded is None:
            definition = self.definitions.get(name)
            if definition is None:
                raise UnknownProgram(f"session {self.id!r} has no program {name[:80]!r}", program=name[:80])
            loaded = self._loaded[name] = self._host.load(definition)
        return loaded

    def keep_program(self, name: str, definition: Definition, program: Program) -> Change:
        self.definitions[name] = definition
        self._loaded[name] = program
        return Change("program", name, definition.to_data())

    def drop_program(self, name: str) -> Change:
        if self.definitions.pop(name, None) is None:
            raise UnknownProgram(f"session {self.id!r} has no program {name[:80]!r}", program=name[:80])
        self._loaded.pop(name, None)
        return Change("program", name)

    def variable(self, name: str) -> JSON:
        if name not in self.variables:
            raise UnknownName(f"session {self.id!r} has no variable {name[:80]!r}", variable=name[:80])
        return self.variables[name]

    def clear(self) -> tuple[Change, ...]:
        """Forget everything but the session itself."""
        self.definitions.clear()
        self._loaded.clear()
        self.variables.clear()
        self.namespace.clear()
        self.history.clear()
        self._history_bytes = 0
        self.lm = None
        return Change("program", "*"), Change("lm", "*"), Change("variable", "*")

    def remember(self, entry: dict[str, JSON], content: dict[str, JSON], limit: int) -> None:
        """Add an operation to the history; `content` (inputs, outputs) only while it is of moderate size."""
        if limit <= 0:
            return
        size = len(msgspec.json.encode(content)) if content else 0
        if size > MAX_ENTRY_BYTES:
            entry["left_out"] = sorted(content)
            size = 0
        else:
            entry.update(content)
        self.history.append((entry, size))
        self._history_bytes += size
        while len(self.history) > limit or self._history_bytes > MAX_HISTORY_BYTES:
            self._history_bytes -= self.history.popleft()[1]

    def _apply(self, item: Change) -> None:
        if item.kind == "program":
            if item.payload is not None:
                self.definitions[item.name] = msgspec.convert(item.payload, Definition)
            elif item.name == "*":
                self.definitions.clear()
            else:
                self.definitions.pop(item.name, None)
        elif item.kind == "variable":
            if item.payload is not None:
                self.variables[item.name] = item.payload["value"]
            elif item.name == "*":
                self.variables.clear()
            else:
                self.variables.pop(item.name, None)
        elif item.kind == "lm":
            chosen = item.payload
            self.lm = (
                LMChoice(chosen["profile"], chosen.get("overrides") or {}) if chosen is not None else None
            )
        else:
            raise InternalError(f"session {self.id!r}: unknown stored item {item.kind!r}")
