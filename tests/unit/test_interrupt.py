"""Ctrl-C while a command still imports: it ends without a traceback, as a shell expects it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dspool.cli import app

# Typer is among the first imports; here it takes until Ctrl-C has come, or until nobody sends it.
HANGING = """
import os, signal
print("importing", flush=True)
os.read(0, 1)
print("went on", flush=True)
os._exit(0)
"""
SCRIPT = "import sys\nfrom dspool.cli import main\nsys.exit(main())\n"
OTHERS = "import signal, dspool.cli.interrupt; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


@pytest.fixture(params=["script", "module"])
def importing(request, tmp_path):
    """Starts `dspool`, which stands in the midst of its imports."""
    (tmp_path / "typer.py").write_text(HANGING)
    (tmp_path / "dspool").write_text(SCRIPT)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    how = [str(tmp_path / "dspool")] if request.param == "script" else ["-m", "dspool.cli"]

    def started(**options):
        process = subprocess.Popen(
            [sys.executable, "-P", *how, "status"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            **options,
        )
        assert process.stdout.readline() == "importing\n", process.communicate()
        return process

    return started


def test_ctrl_c_during_the_imports_ends_a_command_silently(importing):
    with importing() as command:
        command.send_signal(signal.SIGINT)
        said = command.communicate(timeout=60)
    # A shell shows 130 for that.
    assert (command.returncode, said) == (-signal.SIGINT, ("", ""))


def test_what_ignores_ctrl_c_goes_on_ignoring_it(importing):
    with importing(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as command:
        command.send_signal(signal.SIGINT)
        said = command.communicate("x", timeout=60)
    assert (command.returncode, said) == (0, ("went on\n", ""))


def test_what_is_no_command_has_pythons_handler():
    done = subprocess.run([sys.executable, "-c", OTHERS], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_ctrl_c_that_no_command_catches_is_exit_code_130_without_a_traceback(tmp_path):
    """As one in the midst of the import of Ray."""
    code = (
        "import signal, dspool.cli\n"
        "def found(*_, **__): assert signal.getsignal(signal.SIGINT) is signal.default_int_handler; "
        "signal.raise_signal(signal.SIGINT)\n"
        "dspool.cli.load_config = found; signal.signal(signal.SIGINT, signal.SIG_DFL); dspool.cli.main()"
    )
    command = [sys.executable, "-c", code, "config", "--state-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_ctrl_c_beside_the_commands_is_exit_code_130(wrapped, monkeypatch):
    def main(*_, **__):
        if wrapped:
            raise RuntimeError from KeyboardInterrupt()
        raise KeyboardInterrupt

    monkeypatch.setattr("dspool.cli.entry.TyperGroup.main", main)
    with pytest.raises(SystemExit) as ended:
        app(["status"])
    assert ended.value.code == 130
