"""Where Deno is, and how to start it so that what runs in it reaches nothing."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dspool.errors import SandboxUnavailable

_log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_IMPORTS = f"--import-map={_HERE / 'imports.json'}"
_PLAIN = ("--no-config", "--no-lock", "--node-modules-dir=false")
_PROBE_S = 10.0
_FETCH_S = 120.0


def command(runner: Path, *, memory_bytes: int, cpu_s: int) -> list[str]:
    """The command that starts DSPy's `runner` with no permission but to read Pyodide while it starts.

    The first call of a process fetches Pyodide if it is not there yet.

    Raises:
        SandboxUnavailable: there is no Deno, none that DSPy can use, or no Pyodide.
    """
    deno, cache = _prepare(find(), runner)
    limits = [str(os.getpid()), str(memory_bytes), str(cpu_s)]
    return [
        # A clean environment first: nothing can read what is not there, whatever else fails.
        *("/usr/bin/env", "-i", f"DENO_DIR={cache}", "DENO_NO_UPDATE_CHECK=1", "NO_COLOR=1"),
        *(sys.executable, "-I", "-S", str(_HERE / "launch.py"), *limits),
        *(deno, "run", *_PLAIN, _IMPORTS, "--no-prompt", "--cached-only"),
        f"--allow-read={os.path.realpath(runner)},{cache}",
        os.path.realpath(runner),
        "",  # variables of the environment that it may read
        # The runner gives up the right to read this as soon as Pyodide is loaded.
        f"--dspy-deno-dir={cache}",
    ]


def find() -> str | None:
    """The path of Deno: that of the Python package `deno`, or the one on `PATH`."""
    try:
        from deno import find_deno_bin

        return str(find_deno_bin())
    except (ImportError, FileNotFoundError):
        return shutil.which("deno")


@functools.cache
def _prepare(deno: str | None, runner: Path) -> tuple[str, str]:
    """The executable, and its cache directory with all that the runner needs."""
    if deno is None:
        raise SandboxUnavailable(
            "execute_code needs Deno for its sandbox, and there is none on the worker's machine; "
            "`pip install deno` is enough"
        )
    version = re.match(r"deno (\d+)\.", _run(_PROBE_S, deno, "--version").stdout)
    if version is None or version[1] != "2":
        raise SandboxUnavailable(f"the sandbox needs Deno 2; what is at {deno} is another")
    try:
        cache = str(json.loads(_run(_PROBE_S, deno, "info", "--json").stdout)["denoDir"])
    except (ValueError, KeyError) as unknown:
        raise SandboxUnavailable("Deno does not say where its cache is") from unknown
    fetch = _run(_FETCH_S, deno, "cache", *_PLAIN, _IMPORTS, os.path.realpath(runner))
    if fetch.returncode != 0:
        _log.error("Deno could not fetch Pyodide: %s", fetch.stderr[-1000:])
        raise SandboxUnavailable(
            "Deno has no Pyodide and could not fetch it from the npm registry; the worker's log says why"
        )
    return deno, os.path.realpath(cache)


def _run(timeout_s: float, *command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env={**os.environ, "DENO_NO_PACKAGE_JSON": "1", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as failed:
        raise SandboxUnavailable(f"Deno at {command[0]} cannot be run ({type(failed).__name__})") from failed
