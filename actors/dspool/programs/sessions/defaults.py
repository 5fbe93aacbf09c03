"""DSPy's settings in one worker below those of its programs: what the operator's own code configured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dspool.programs.models.lm import is_remote
from dspool.programs.program import Program
from dspool.programs.settings import run_setup


class Defaults:
    """Programs that `loaded` gives, and those that come after, run under what `call` and `set_up` configure.

    With `local`, no LM that somebody's code configured or set on a predictor is used if its calls leave this process.
    """

    def __init__(self, loaded: Callable[[], Iterable[Program]], *, local: bool = False) -> None:
        self._loaded, self._local = loaded, local
        self._settings: dict[str, Any] = {}
        self._done: set[str] = set()

    async def set_up(self, import_path: str) -> None:
        """Call the function that `import_path` names, the first time that it is named here. Raises what it raises."""
        if import_path not in self._done:
            await self.call(import_path)
            self._done.add(import_path)

    async def call(self, import_path: str) -> None:
        """Call the function that `import_path` names. Raises what it raises."""
        self._settings |= await run_setup(import_path)
        if self._local and is_remote(self._settings.get("lm")):
            del self._settings["lm"]
        for program in self._loaded():
            program.use(self._settings)

    def apply(self, program: Program) -> None:
        """To a program that was loaded just now. Raises `ProgramError` if its code does."""
        if self._local:
            program.forget_remote()
        program.use(self._settings)
