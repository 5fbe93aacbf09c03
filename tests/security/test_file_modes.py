"""No other user of the machine may open what dspool writes, whatever the umask and the modes that were there."""

import os
import stat
import threading
from pathlib import Path

import pytest

from dspool import private_files
from dspool.cli.run_file import RunFile, ServiceRun
from dspool.config import PoolConfig
from dspool.errors import ConfigError, StoreFailed
from dspool.messages import Change
from dspool.private_files import NotPrivate
from dspool.runtime.store import StoreActor
from dspool.store.store import SessionStore
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.observation import Observation, checkpoint_file
from dspool.telemetry.trace_export import FileExporter
from dspool.tokens import issue
from dspool_serve.access.audit import Audit


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture(autouse=True)
def careless_umask():
    """The worst that a service can be started with."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def state_dir(tmp_path):
    """A state directory from an earlier life, open to everybody with all that is in it."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o777)
    (directory / "traces").mkdir(mode=0o777)
    for name in (
        "sessions.db-wal",
        "audit.jsonl",
        "metrics-default.checkpoint",
        "metrics-default.checkpoint.new",
        "traces/worker-1.jsonl",
    ):
        (directory / name).touch(mode=0o666)
    return directory


async def use(state_dir):
    """Everything that writes there, as its process does."""
    config = PoolConfig(state_dir=state_dir, enable_metrics=False)
    RunFile(state_dir).claim(ServiceRun(pid=os.getpid(), pid_started=0.0, pool="default"))
    RunFile(state_dir).write(ServiceRun(pid=os.getpid(), pid_started=0.0, pool="default", url="http://x"))
    store = StoreActor(config)
    lease = await store.ask("acquire", "p", "s", "w", create=True)
    await store.ask("commit", "p", "s", "w", lease.epoch, [Change("variable", "v", {"value": 1})])
    observation = Observation(config, Metrics(config.name))
    await observation.save()
    observation.close()
    exporter = FileExporter(state_dir / "traces", "worker-1")
    exporter.export([])
    exporter.shutdown()
    Audit(state_dir / "audit.jsonl")
    issue(state_dir / "tokens.yaml", "ada", "caller")
    modes = {path.relative_to(state_dir): mode(path) for path in [state_dir, *state_dir.rglob("*")]}
    await store.close()
    return modes


def wide(modes):
    return {str(path): oct(bits) for path, bits in modes.items() if bits & 0o077}


async def test_all_that_is_written_to_a_state_directory_is_private_even_if_it_was_open_before(state_dir):
    modes = await use(state_dir)
    assert wide(modes) == {}
    assert {"sessions.db", "sessions.db-wal", "sessions.db-shm", "run.json", "tokens.yaml"} <= set(
        map(str, modes)
    )
    assert checkpoint_file(PoolConfig(state_dir=state_dir)).exists()


async def test_all_that_is_written_to_a_new_one_is_private(tmp_path):
    assert wide(await use(tmp_path / "a" / "b" / "state")) == {}
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700


async def test_a_database_elsewhere_is_private_in_a_directory_that_others_share(tmp_path):
    directory = tmp_path / "shared"
    directory.mkdir(mode=0o755)
    (directory / "pool.db").touch(mode=0o666)
    store = SessionStore(f"sqlite:///{directory}/pool.db")
    await store.open()
    await store.create("p", "s")
    assert mode(directory) == 0o755
    assert wide({path: mode(path) for path in directory.iterdir()}) == {}
    await store.close()


def test_a_file_is_private_from_its_first_moment(tmp_path, monkeypatch):
    """No descriptor of it is ever open with a wider mode: it is made so, and not changed later."""
    made = []
    real = os.open

    def watched(path, flags, *rest, **more):
        descriptor = real(path, flags, *rest, **more)
        if flags & os.O_CREAT:
            made.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    private_files.replace(tmp_path / "a", b"x")
    os.close(private_files.open_descriptor(tmp_path / "b", os.O_WRONLY | os.O_CREAT))
    assert made == [0o600, 0o600]


# --- what others may have put there ---


@pytest.mark.parametrize("target", ["file", "nowhere"])
def test_a_link_in_the_place_of_a_file_is_refused_and_what_it_points_to_stays(tmp_path, target):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(NotPrivate):
        private_files.open_descriptor(tmp_path / "link", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


async def test_the_store_and_the_audit_log_refuse_a_link(tmp_path):
    (tmp_path / "target").touch()
    for name in ("sessions.db", "audit.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "target")
    with pytest.raises(StoreFailed, match="a link"):
        await SessionStore(f"sqlite:///{tmp_path}/sessions.db").open()
    with pytest.raises(ConfigError, match="a link"):
        Audit(tmp_path / "audit.jsonl")


def test_a_fifo_in_the_place_of_a_file_is_refused_and_holds_nobody(tmp_path):
    os.mkfifo(tmp_path / "f")
    ended = threading.Event()

    def open_it():
        with pytest.raises(OSError):  # noqa: PT011
            private_files.open_descriptor(tmp_path / "f", os.O_WRONLY | os.O_CREAT)
        ended.set()

    threading.Thread(target=open_it, daemon=True).start()
    assert ended.wait(60)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_is_another_users_is_refused(tmp_path):
    (tmp_path / "f").touch()
    os.chown(tmp_path / "f", 12345, 12345)
    (tmp_path / "d").mkdir()
    os.chown(tmp_path / "d", 12345, 12345)
    (tmp_path / "link").symlink_to(tmp_path)
    os.chown(tmp_path / "link", 12345, 12345, follow_symlinks=False)
    with pytest.raises(NotPrivate, match="another user's file"):
        private_files.open_descriptor(tmp_path / "f", os.O_RDWR)
    with pytest.raises(NotPrivate, match="another user's directory"):
        private_files.make_directory(tmp_path / "d")
    with pytest.raises(NotPrivate, match="another user's link"):
        private_files.make_directory(tmp_path / "link")
    run = ServiceRun(pid=1, pid_started=0.0, pool="p")
    with pytest.raises(ConfigError, match="another user's"):
        RunFile(tmp_path / "d").claim(run)


def test_a_directory_that_many_use_is_not_shut_to_them(tmp_path, monkeypatch):
    sticky = tmp_path / "like-tmp"
    sticky.mkdir()
    sticky.chmod(0o1777)
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    monkeypatch.setenv("HOME", str(home))
    for directory in (sticky, home, Path("/usr"), Path("/var/lib")):
        before = mode(directory)
        with pytest.raises(NotPrivate):
            private_files.make_directory(directory)
        assert mode(directory) == before


def test_a_link_of_ours_to_a_directory_is_followed(tmp_path):
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    private_files.make_directory(tmp_path / "link")
    assert mode(tmp_path / "real") == 0o700


def test_no_module_opens_files_for_writing_past_the_one_that_makes_them_private():
    """New code that writes files has to go through `private_files`, or be listed here with a reason."""
    allowed = {
        "private_files.py",
        "tokens.py",  # mkstemp
        "handover.py",  # /proc
        "places.py",  # below a 0700 directory that it makes and checks itself
        "node_parent.py",  # in a directory of places
        "entry.py",  # /dev/null
        "trial_process.py",  # /dev/null
        "shim.py",  # as places; it starts without our modules
        "haproxy_script.py",  # below the run's 0700 directory
        "haproxy_frontend.py",
        "session_logs.py",  # empties Ray's own
        "__main__.py",  # generators of this project
        "haproxy.py",
        "copies.py",  # for reading, to have it written to the disk
        "new.py",  # a project of the user's own, as any editor writes it
    }
    root = Path(private_files.__file__).parent
    words = (".write_text(", ".write_bytes(", "os.open(", ".mkdir(", 'open("w')
    found = {
        path.name
        for source in (root, root.parents[1] / "serve_app")
        for path in source.rglob("*.py")
        if any(word in path.read_text() for word in words)
    }
    assert found - allowed == set()
