"""Tests run in surroundings as good as new and leave nothing there: what makes them, and what finds what was left."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import surroundings
from tests.fresh import CARRIED
from tests.surroundings import LEFT_BEHIND, PATIENCE_S, PLACES, ROOT, Surroundings

LOOK = """
import os, pathlib, tempfile
home = pathlib.Path.home()
found = [path.relative_to(home) for path in home.rglob("*") if not path.is_symlink()]
print("tmp", os.listdir(tempfile.gettempdir()))
print("home", [str(path) for path in found if path.name not in {parents}])
"""


@pytest.fixture
def home():
    """One with something in it; not in /tmp, which is another in fresh surroundings."""
    with tempfile.TemporaryDirectory(prefix="home-", dir="/var/tmp") as directory:
        home = Path(directory)
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text("left by another run")
        (home / ".npmrc").write_text("fund=false\n")
        yield home


def fresh(home: Path, program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fresh", sys.executable, "-c", program],
        env={**os.environ, "HOME": str(home), PATIENCE_S: "0", **environ},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_finds_an_empty_home_and_an_empty_temporary_directory(home):
    parents = {part for name in CARRIED for part in Path(name).parts}
    done = fresh(home, LOOK.format(parents=parents))
    assert done.returncode == 0, done.stderr
    assert "tmp []" in done.stdout
    assert "home []" in done.stdout


def test_where_namespaces_are_not_allowed_both_are_fresh_directories_and_one_line_says_so(home):
    parents = {part for name in CARRIED for part in Path(name).parts}
    # Without `unshare` on the path nothing can be allowed.
    done = fresh(home, LOOK.format(parents=parents), PATH="")
    assert done.stdout.startswith("No namespaces here: ")
    assert "tmp []" in done.stdout
    assert "home []" in done.stdout
    (left,) = fresh(home, "import tempfile; tempfile.mkdtemp()", PATH="").stderr.splitlines()
    assert left.startswith("left behind: ")


def test_the_settings_of_registries_come_along(home):
    done = fresh(home, "import pathlib; print((pathlib.Path.home() / '.npmrc').read_text())")
    assert "fund=false" in done.stdout


def test_variables_that_name_what_others_have_used_are_dropped(home):
    program = "import os; print([name for name in os.environ if name in ('XDG_STATE_HOME', 'RAY_TMPDIR')])"
    done = fresh(home, program, XDG_STATE_HOME=str(home), RAY_TMPDIR="/tmp")
    assert "[]" in done.stdout


def test_a_command_that_leaves_nothing_ends_with_its_own_code(home):
    program = "import tempfile; tempfile.TemporaryDirectory(); raise SystemExit(3)"
    assert fresh(home, program).returncode == 3


@pytest.mark.parametrize(
    ("program", "named"),
    [
        ("import tempfile; tempfile.mkdtemp(prefix='forgotten-')", "/forgotten-"),
        ("import pathlib; (pathlib.Path.home() / '.ray').mkdir()", "/.ray"),
        ("import pathlib; (pathlib.Path.home() / '.cache' / 'x').mkdir(parents=True)", "/.cache/x"),
    ],
)
def test_a_command_that_leaves_something_fails_and_it_is_named(home, program, named):
    done = fresh(home, program)
    assert done.returncode == LEFT_BEHIND
    (line,) = done.stderr.splitlines()
    assert line.startswith("left behind: ")
    assert named in line


def test_nothing_is_left_of_the_surroundings_themselves(home):
    done = fresh(home, "import pathlib; print('home is', pathlib.Path.home())")
    place = Path(done.stdout.split("home is ")[1].strip()).parent
    assert place != home.parent
    assert not place.exists()


# --- what is new in a place ------------------------------------------------------------------------


def test_what_comes_after_the_first_look_is_new_and_a_directory_is_one_thing(tmp_path):
    (tmp_path / "old" / "deep").mkdir(parents=True)
    watched = Surroundings([tmp_path])
    (tmp_path / "old" / "deep" / "file").touch()
    (tmp_path / "made" / "below").mkdir(parents=True)
    assert watched.new() == {str(tmp_path / "old" / "deep" / "file"), str(tmp_path / "made")}


def test_a_directory_is_read_again_only_when_it_has_changed(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    for directory in (tmp_path / "old", tmp_path):
        os.utime(directory, (1_000, 1_000))
    watched = Surroundings([tmp_path])
    with monkeypatch.context() as patched:
        patched.setattr(surroundings.os, "scandir", lambda path: pytest.fail(f"{path} is read again"))
        assert watched.new() == set()
    (tmp_path / "old" / "first").touch()
    assert watched.new() == {str(tmp_path / "old" / "first")}
    # At once: within the same tick of the file system's clock.
    (tmp_path / "old" / "second").touch()
    assert watched.new() == {str(tmp_path / "old" / name) for name in ("first", "second")}


def test_caches_that_their_owners_document_may_stay(tmp_path):
    watched = Surroundings([tmp_path])
    for name in ("pytest-of-somebody", ".cache/deno"):
        (tmp_path / name).mkdir(parents=True)
    assert watched.new() == set()
    (tmp_path / ".cache" / "other").mkdir()
    assert watched.new() == {str(tmp_path / ".cache" / "other")}


def test_what_goes_by_itself_in_time_is_not_left(tmp_path, monkeypatch):
    watched = Surroundings([tmp_path])
    (tmp_path / "goes").touch()
    monkeypatch.setattr(surroundings.time, "sleep", lambda _: (tmp_path / "goes").unlink())
    assert watched.left() == []
    assert not (tmp_path / "goes").exists()


def test_a_process_is_left_until_it_has_ended():
    watched = Surroundings([], processes=True, patience_s=0.0)
    with subprocess.Popen(["cat", "-u"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        # It answers: it runs, and its command can be read, which is not so for a moment on a busy machine.
        process.stdin.write(b"!")
        assert process.stdout.read(1) == b"!"
        assert f"process {process.pid}" in watched.left()
        assert "cat -u" in surroundings.described(f"process {process.pid}")
        process.kill()
        # Nobody has asked for its exit code: it is still in the table.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert f"process {process.pid}" in watched.new()
        assert f"process {process.pid}" not in watched.left()


def test_where_nothing_is_said_to_be_ours_nothing_is_watched():
    assert Surroundings.of({}) is None


# --- which test it was -----------------------------------------------------------------------------

CONFTEST = """
import pathlib, os
import pytest
from tests import left_behind

place = pathlib.Path(os.environ["PLACE"])

def pytest_configure(config):
    left_behind.register(config)

@pytest.fixture(scope="session")
def shared():
    # Each process has its own.
    made = place / f"shared-{os.getpid()}"
    made.mkdir()
    yield made
    made.rmdir()
"""
TIDY = """
import os

def test_uses_what_outlives_it(shared):
    assert shared.is_dir()

def test_of_a_pytest_that_this_starts_nothing_is_expected():
    assert "FRESH_PLACES" not in os.environ
"""
UNTIDY = """
def test_tidies_up(shared):
    (shared.parent / "made").touch()
    (shared.parent / "made").unlink()

def test_forgets(shared):
    (shared.parent / "forgotten").touch()
"""


@pytest.mark.parametrize("processes", [(), ("-n", "2", "--dist", "loadfile")], ids=["one", "two"])
@pytest.mark.parametrize("untidy", [False, True], ids=["tidy", "untidy"])
def test_a_test_that_leaves_something_fails_the_run_and_is_named(tmp_path, processes, untidy):
    place, suite = tmp_path / "place", tmp_path / "suite"
    place.mkdir()
    suite.mkdir()
    (suite / "conftest.py").write_text(CONFTEST)
    (suite / "test_tidy.py").write_text(TIDY)
    if untidy:
        (suite / "test_untidy.py").write_text(UNTIDY)
    environ = {**os.environ, PLACES: str(place), PATIENCE_S: "0", "PLACE": str(place)}
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "xdist", *processes, str(suite)],
        env=environ,
        cwd=suite,
        capture_output=True,
        text=True,
        check=False,
    )
    if not untidy:
        assert done.returncode == 0, done.stdout
        assert "left behind" not in done.stdout
        return
    assert done.returncode == LEFT_BEHIND, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(str(place)))
    assert line.startswith(f"{place / 'forgotten'}: came during ")
    assert "test_untidy.py::test_forgets" in line
