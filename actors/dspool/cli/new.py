"""`dspool new NAME`: a project with a program, its tests and its configuration, which run as they are."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from dspool.cli.options import Debug, Json
from dspool.cli.output import Output, guarded
from dspool.errors import ConfigError, Conflict

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*")
_TAKEN = {"tests", "site-packages", "answers"}
"""Folders that the project has beside its package, or would be taken for something else."""
FILES = {
    "README.md": "README.md.txt",
    "pyproject.toml": "pyproject.toml.txt",
    "pool.yaml": "pool.yaml.txt",
    ".env.example": "env.example.txt",
    ".gitignore": "gitignore.txt",
    "Containerfile": "Containerfile.txt",
    "$package/__init__.py": None,
    "$package/answers.py": "answers.py.txt",
    "tests/test_answers.py": "test_answers.py.txt",
}
"""Each file of a project, and its template."""


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the project, or the path of its new directory.")
    ],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a project: a program, its tests, a configuration, a Containerfile. It runs as it is."""
    out = Output(json, debug)
    with guarded(out):
        directory = Path(name)
        written = write_project(directory)
        package = package_of(directory.name)
        out.result(
            {"directory": str(directory), "package": package, "files": written},
            "\n".join(
                [
                    f"wrote {len(written)} files to {directory}",
                    f"  cd {_quoted(directory)}",
                    f"  dspool dev {package}.answers:Answer",
                    "  pytest",
                    "  dspool up --config pool.yaml",
                ]
            ),
        )


def write_project(directory: Path) -> list[str]:
    """Write a project into a new or empty directory; the files that it has now.

    Raises:
        ConfigError: its name cannot be that of a package, or it cannot be written. Conflict: there is something in it.
    """
    project = directory.name
    package = package_of(project)
    values = {"project": project, "package": package}
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise Conflict(f"{directory} is there and not empty; nothing was written", path=str(directory))
        written = []
        for path, template in FILES.items():
            file = directory / Template(path).substitute(values)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = "" if template is None else _template(template).safe_substitute(values)
            file.write_text(text, encoding="utf-8")
            written.append(str(file.relative_to(directory)))
    except OSError as failed:
        raise ConfigError(f"cannot write to {directory}: {failed.strerror}", key="name") from failed
    return written


def package_of(project: str) -> str:
    """The name of the package in a project of this name. Raises: ConfigError: there can be none."""
    if not _NAME.fullmatch(project):
        raise ConfigError(
            f"{project!r} cannot name a project: letters a to z, digits, and - or _ between them, with a letter first",
            key="name",
            value=project,
        )
    package = project.replace("-", "_").lower()
    for taken, why in (
        (keyword.iskeyword(package) or keyword.issoftkeyword(package), "is a word of Python's"),
        (package in sys.stdlib_module_names or package == "test", "is a module of Python's own"),
        (
            package in _TAKEN or _is_installed(package),
            "is a package that is installed here or a folder of the project",
        ),
    ):
        if taken:
            raise ConfigError(
                f"{package!r} {why}, so a package of this name could not be imported: "
                f"take another name, such as {project}-app",
                key="name",
                value=project,
            )
    return package


def _is_installed(package: str) -> bool:
    here = {"", str(Path.cwd())}
    kept = list(sys.path)
    try:
        sys.path[:] = [entry for entry in kept if entry not in here]
        spec = find_spec(package)
        # A mere folder that has this name stands behind the project's own package.
        return spec is not None and spec.origin is not None
    except (ImportError, ValueError):
        return False
    finally:
        sys.path[:] = kept


def _template(name: str) -> Template:
    return Template((files("dspool.cli") / "project" / name).read_text(encoding="utf-8"))


def _quoted(directory: Path) -> str:
    import shlex

    return shlex.quote(str(directory))


def add_to(app: typer.Typer) -> None:
    app.command()(new)


__all__ = ["FILES", "add_to", "new", "package_of", "write_project"]
