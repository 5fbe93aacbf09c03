"""The pool programs a worker has loaded: versions by name, one of them current."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dspool.core.lifecycle.source import ImportedSource, check_source, import_paths
from dspool.errors import Conflict, PoolError, UnknownProgram, suggestion
from dspool.messages import Deployment
from dspool.programs.program import Definition, Program


class PoolPrograms:
    """Warm-up and deployments fill it; every operation that runs a pool program reads it."""

    def __init__(
        self, load: Callable[[Definition], Program], source: Callable[[Iterable[str]], ImportedSource]
    ) -> None:
        """`source(import_paths)` is what this process has imported around them."""
        self._load = load
        self._source = source
        self._versions: dict[str, dict[int, Program]] = {}
        self.current: dict[str, int] = {}
        """Current version by name."""

    def deploy(self, d: Deployment) -> None:
        """Load one version; a version above the current one becomes current.

        Raises:
            Conflict: this process has imported other source than the version is made of.
            PoolError: what loading raises, with the `program`.
        """
        try:
            program = self._load(Definition(d.spec, d.state, d.import_path, d.kwargs, d.program_dir))
        except PoolError as failed:
            failed.details.setdefault("program", d.program)
            raise
        if paths := import_paths(d):
            # Asked in any case: from now on a late import of this source gets what it is now, or fails.
            check_source(d, self._source(paths).modules)
        # The program first: another thread that reads `current` must find the version it names.
        self._versions.setdefault(d.program, {})[d.version] = program
        if d.version > self.current.get(d.program, 0):
            self.current[d.program] = d.version

    def loaded(self) -> list[Program]:
        """All versions of all programs."""
        return [program for versions in self._versions.values() for program in versions.values()]

    def retire(self, name: str, version: int) -> None:
        """Forget one version. The current one can only go when it is the last.

        Raises:
            UnknownProgram: not loaded. Conflict: it is current and others are loaded.
        """
        versions = self._of(name)
        self._version(name, version)
        if version == self.current[name] and len(versions) > 1:
            raise Conflict(
                f"version {version} of {name!r} is current: activate another one first", program=name
            )
        if len(versions) == 1:
            del self.current[name], self._versions[name]
        else:
            del versions[version]

    def activate(self, name: str, version: int) -> None:
        """Make a loaded version the current one. Raises `UnknownProgram`."""
        self._version(name, version)
        self.current[name] = version

    def version_of(self, name: str) -> int:
        """The current version. Raises `UnknownProgram`."""
        self._of(name)
        return self.current[name]

    def get(self, name: str, version: int = 0) -> tuple[Program, int]:
        """A program and its version (0: the current one). Raises `UnknownProgram`."""
        number = version or self.current.get(name, 0)
        versions = self._versions.get(name)
        program = versions.get(number) if versions is not None else None
        return (program or self._version(name, number)), number

    def _of(self, name: str) -> dict[int, Program]:
        versions = self._versions.get(name)
        if versions is None:
            names = ", ".join(sorted(self._versions)) or "none"
            raise UnknownProgram(
                f"no pool program {name[:80]!r}{suggestion(name, self._versions)}; there are: {names}",
                program=name[:80],
            )
        return versions

    def _version(self, name: str, version: int) -> Program:
        program = self._of(name).get(version)
        if program is None:
            raise UnknownProgram(f"{name!r} has no version {version} here", program=name, version=version)
        return program
