"""What one session holds: program definitions, LM choice, variables, and a bounded history of its operations."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import msgspec

from dspool.errors import InternalError, UnknownName, UnknownProgram, suggestion
from dspool.messages import JSON, Change
from dspool.programs.program import Definition, Program

MAX_ENTRY_BYTES = 16_384
"""An operation with longer inputs and outputs is remembered without them."""
ENTRY_BYTES = 512
"""What an operation takes besides its content."""
PROGRAM_BYTES, TYPE_BYTES, LITERAL_BYTES = 65_536, 5_000, 150
"""What a program takes when it is built, however short its text, and what each type and each value of a Literal in its
signature adds: measured over those of which a short text makes most."""
MAX_HISTORY_BYTES = 524_288
"""Of one session; the oldest operations go first."""


class Host(Protocol):
    """What a session needs of the worker that it is on."""

    clock: Callable[[], float]

    def load(self, definition: Definition) -> Program:
        """A program built from `definition`. Raises `PoolError`."""


def _built_bytes(program: Program) -> int:
    signature = program.signature
    if signature is None:
        return PROGRAM_BYTES
    return PROGRAM_BYTES + TYPE_BYTES * signature.types + LITERAL_BYTES * signature.literals


class LMChoice(NamedTuple):
    profile: str
    overrides: dict[str, JSON]


class Session:
    """One user's state on a worker. Its operations run one at a time, so nothing here locks."""

    __slots__ = (
        "_before",
        "_host",
        "_programs",
        "cost_usd",
        "created_at",
        "definitions",
        "errors",
        "history",
        "history_bytes",
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
        self._programs: dict[str, Program] = {}
        self._before: tuple[Any, ...] | None = None
        self.history_bytes = 0
        self.id = session_id
        self.principal = principal
        self.created_at = self.last_used = host.clock()
        self.definitions: dict[str, Definition] = {}
        self.lm: LMChoice | None = None
        self.variables: dict[str, JSON] = {}
        self.namespace: dict[str, Any] = {}
        """What `execute_code` defined; lives while the worker keeps the session and is never stored."""
        self.history: deque[tuple[dict[str, JSON], bytes]] = deque()
        """Operations, each with its content in JSON: as objects that would take many times its size."""
        self.operations = 0
        self.errors = 0
        self.tokens = 0
        self.cost_usd = 0.0

    @classmethod
    def rebuild(
        cls, host: Host, session_id: str, changes: Iterable[Change], principal: str | None = None
    ) -> Session:
        """The session that the stored `changes` describe. It builds its programs at their first use."""
        session = cls(host, session_id, principal)
        for change in changes:
            session._apply(change)
        return session

    def items(self) -> tuple[Change, ...]:
        """All that must outlive this process, as `rebuild` takes it back."""
        programs = (Change("program", name, d.to_data()) for name, d in self.definitions.items())
        lm = (Change("lm", "lm", {"profile": c.profile, "overrides": c.overrides}) for c in (self.lm,) if c)
        variables = (Change("variable", name, {"value": value}) for name, value in self.variables.items())
        return (*programs, *lm, *variables)

    def program(self, name: str) -> Program:
        """The session's own program `name`, built now if it was not yet.

        Raises:
            UnknownProgram: it has none of that name.
        """
        program = self._programs.get(name)
        if program is None:
            definition = self.definitions.get(name)
            if definition is None:
                raise self._no_program(name)
            program = self._programs[name] = self._host.load(definition)
        return program

    def is_unbuilt(self, name: str) -> bool:
        """Whether it has a program `name` that it has not built yet."""
        return name in self.definitions and name not in self._programs

    def keep_program(self, name: str, definition: Definition, program: Program) -> Change:
        self.definitions[name] = definition
        self._programs[name] = program
        return Change("program", name, definition.to_data())

    def drop_program(self, name: str) -> Change:
        if self.definitions.pop(name, None) is None:
            raise self._no_program(name)
        self._programs.pop(name, None)
        return Change("program", name)

    def _no_program(self, name: str) -> UnknownProgram:
        like = suggestion(name, self.definitions)
        return UnknownProgram(f"session {self.id!r} has no program {name[:80]!r}{like}", program=name[:80])

    def variable(self, name: str) -> JSON:
        if name not in self.variables:
            like = suggestion(name, self.variables)
            raise UnknownName(f"session {self.id!r} has no variable {name[:80]!r}{like}", variable=name[:80])
        return self.variables[name]

    @property
    def extra_bytes(self) -> int:
        """Roughly what it takes in this process besides what is stored: its history, and programs that are built."""
        return self.history_bytes + sum(map(_built_bytes, self._programs.values()))

    def mark(self) -> None:
        """Remember what it holds now, for `undo`."""
        self._before = dict(self.definitions), dict(self._programs), dict(self.variables), self.lm

    def forget_mark(self) -> None:
        self._before = None

    def undo(self) -> bool:
        """Go back to what it held at `mark`; False if there is none."""
        if self._before is None:
            return False
        self.definitions, self._programs, self.variables, self.lm = self._before
        self._before = None
        return True

    def clear(self) -> tuple[Change, ...]:
        """Forget everything but the session itself."""
        self.definitions.clear()
        self._programs.clear()
        self.variables.clear()
        self.namespace.clear()
        self.history.clear()
        self.history_bytes = 0
        self.lm = None
        return Change("program", "*"), Change("lm", "*"), Change("variable", "*")

    def remember(self, entry: dict[str, JSON], content: dict[str, JSON], limit: int) -> None:
        """Add an operation to the history; `content` (inputs, outputs) only up to `MAX_ENTRY_BYTES`."""
        if limit <= 0:
            return
        packed = msgspec.json.encode(content)
        if len(packed) > MAX_ENTRY_BYTES:
            entry["left_out"] = sorted(content)
            packed = b"{}"
        self.history.append((entry, packed))
        self.history_bytes += ENTRY_BYTES + len(packed)
        while len(self.history) > limit or self.history_bytes > MAX_HISTORY_BYTES:
            self.history_bytes -= ENTRY_BYTES + len(self.history.popleft()[1])

    def recent(self, count: int) -> list[dict[str, JSON]]:
        """The last `count` operations, newest last."""
        entries = list(self.history)[-count:] if count > 0 else []
        return [entry | msgspec.json.decode(packed) for entry, packed in entries]

    def _apply(self, change: Change) -> None:
        if change.kind == "program":
            if change.payload is not None:
                self.definitions[change.name] = msgspec.convert(change.payload, Definition)
            elif change.name == "*":
                self.definitions.clear()
            else:
                self.definitions.pop(change.name, None)
        elif change.kind == "variable":
            if change.payload is not None:
                self.variables[change.name] = change.payload["value"]
            elif change.name == "*":
                self.variables.clear()
            else:
                self.variables.pop(change.name, None)
        elif change.kind == "lm":
            choice = change.payload
            self.lm = (
                LMChoice(choice["profile"], choice.get("overrides") or {}) if choice is not None else None
            )
        else:
            raise InternalError(f"session {self.id!r}: unknown stored item {change.kind!r}")
