"""What an operation runs: which version of which program, and on which language model with which settings.

The model's profile is that of the request, else the program's own, else the session's, else the default. Settings of
generation (temperature, ...) add up: those of the request hold over the session's, those over the profile's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dspool.config import RequestLM
from dspool.errors import InvalidRequest, NotAllowed
from dspool.messages import JSON, ExecuteProgram, StreamProgram
from dspool.programs.models.errors import translate_errors
from dspool.programs.models.lm import LMs, check_overrides
from dspool.programs.program import Program
from dspool.programs.sessions.pool_programs import PoolPrograms
from dspool.programs.sessions.session import Session


class Run(NamedTuple):
    """What to run, and on which LM."""

    program: Program
    version: int
    lm: Any


class Runs:
    """Raises `UnknownProgram` and what `LMs.get` does, besides what the methods say."""

    def __init__(self, pool_programs: PoolPrograms, lms: LMs, allowed: RequestLM) -> None:
        self._pool_programs = pool_programs
        self._lms = lms
        self._profiles, self._settings = frozenset(allowed.profiles), frozenset(allowed.settings)

    def of(self, command: ExecuteProgram | StreamProgram, session: Session | None) -> Run:
        """What `command` runs.

        Raises:
            NotAllowed: the request chooses what `request_lm` does not let it.
            InvalidRequest: a setting is out of range, or the program has a model of its own in its code, which no
                choice reaches.
        """
        name = command.program
        if session is not None and name in session.definitions:
            program, version = session.program(name), 0
        else:
            program, version = self._pool_programs.get(name, command.version)
        if command.lm is None and (session is None or session.lm is None):
            return Run(program, version, self.usual_lm(program))
        return Run(program, version, self._chosen(program, command.lm, session))

    def usual_lm(self, program: Program) -> Any:
        """The LM of a program for which nobody chooses."""
        if program.own_lm is not None and program.lm is None:
            return program.own_lm
        return self._lms.get(program.lm)

    def _chosen(self, program: Program, asked: dict[str, JSON] | None, session: Session | None) -> Any:
        profile, settings = program.lm, {}
        if session is not None and session.lm is not None:
            profile = profile or session.lm.profile
            settings.update(session.lm.overrides)
        if asked is not None:
            asked = dict(asked)
            named = asked.pop("profile", None)
            settings.update(self._allowed(named, asked))
            profile = named or profile
            if profile is None and program.own_lm is not None:
                raise _beyond_reach("program", "configures a model of its own in its code; name a profile")
        if settings or asked is not None:
            _refuse_models_in_code(program)
        return self._lms.get(profile, settings)

    def _allowed(self, profile: JSON, settings: dict[str, JSON]) -> dict[str, Any]:
        if profile is not None:
            if type(profile) is not str:
                raise InvalidRequest("lm.profile must be a name", field="lm.profile")
            if not self._profiles & {"*", profile}:
                raise NotAllowed(
                    f"a request may not choose the LM profile {profile[:80]!r} here: see request_lm.profiles",
                    field="lm.profile",
                )
        checked = check_overrides(settings)
        if "*" not in self._settings and (refused := sorted(set(checked) - self._settings)):
            raise NotAllowed(
                f"a request may not choose {refused[0]!r} of its LM here: see request_lm.settings",
                field=f"lm.{refused[0]}",
            )
        return checked


def _refuse_models_in_code(program: Program) -> None:
    with translate_errors():
        brings = any(
            getattr(predictor, "lm", None) is not None for _, predictor in program.module.named_predictors()
        )
    if brings:
        raise _beyond_reach("lm", "gives a predictor a model of its own in its code")


def _beyond_reach(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"the program {what}: what a request or session says of its LM cannot hold", field=field
    )
