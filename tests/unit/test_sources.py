"""What a process knows of the source that it imported, and of that on disk."""

from __future__ import annotations

import importlib
import itertools
import os
import py_compile
import subprocess
import sys
import textwrap
import types
import zipfile

import pytest

from dspool.config import PoolConfig
from dspool.core.lifecycle.source import import_paths
from dspool.messages import Deployment
from dspool.programs.sessions.host import SessionHost
from dspool.programs.sources import digest_of, imported_source

_numbers = itertools.count()


class Package:
    """A package `name` of the test's own in a directory from which Python imports."""

    def __init__(self, home):
        self.home = home
        self.name = f"shop{next(_numbers)}"

    def write(self, module, text):
        file = self.home.joinpath(*module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        importlib.invalidate_caches()
        return file

    def load(self, module):
        return importlib.import_module(f"{self.name}.{module}")

    def look(self, module="answers"):
        return imported_source([f"{self.name}.{module}:Answer"])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A directory from which Python imports; what was imported from it is gone afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    yield tmp_path / "home"
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def shop(home):
    """Answers that import their prompts."""
    package = Package(home)
    package.write(f"{package.name}.__init__", "")
    package.write(f"{package.name}.prompts", "TEXT = 'be brief'\n")
    package.write(f"{package.name}.answers", "from .prompts import TEXT\n")
    return package


def test_nothing_has_changed_while_nobody_edits_anything(shop):
    assert shop.look() == imported_source([])
    shop.load("answers")
    seen = shop.look()
    assert set(seen.modules) == {shop.name, f"{shop.name}.answers", f"{shop.name}.prompts"}
    assert seen.changed == {}


@pytest.mark.parametrize("module", ["answers", "prompts", "__init__"])
def test_an_edit_of_a_module_or_of_one_that_it_imports_shows_and_what_was_imported_stays(shop, module):
    shop.load("answers")
    before = shop.look()
    file = shop.write(f"{shop.name}.{module}", "TEXT = 'be thorough'\n")
    name = shop.name if module == "__init__" else f"{shop.name}.{module}"
    assert shop.look() == imported_source([f"{shop.name}:Other"])
    assert shop.look().modules == before.modules
    assert shop.look().changed == {name: str(file)}


def test_an_edit_before_anybody_has_asked_shows_as_well(shop):
    shop.load("answers")
    file = shop.write(f"{shop.name}.prompts", "TEXT = 'be thorough'\n")
    assert shop.look().changed == {f"{shop.name}.prompts": str(file)}


def test_an_edit_that_keeps_size_and_times_shows(shop):
    shop.load("answers")
    file = shop.home / shop.name / "prompts.py"
    times = file.stat()
    file.write_text("TEXT = 'be BRIEF'\n")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size
    assert shop.look().changed == {f"{shop.name}.prompts": str(file)}


def test_an_edit_while_it_is_imported_shows(shop):
    """The module edits itself: whoever looked after the import would take the new text for what runs."""
    file = shop.write(f"{shop.name}.answers", "open(__file__, 'a').write('MORE = 1\\n')\n")
    shop.load("answers")
    assert shop.look().changed == {f"{shop.name}.answers": str(file)}


def test_an_edit_that_is_taken_back_or_a_touch_is_none(shop):
    shop.load("answers")
    file = shop.home / shop.name / "prompts.py"
    text = file.read_text()
    file.write_text("TEXT = 'no'\n")
    file.write_text(text)
    os.utime(file)
    file.chmod(0o600)
    assert shop.look().changed == {}


def test_a_file_that_is_gone_has_changed(shop):
    shop.load("answers")
    file = shop.home / shop.name / "prompts.py"
    file.unlink()
    assert shop.look().changed == {f"{shop.name}.prompts": str(file)}


def test_a_late_import_gets_what_was_there_when_the_program_was_loaded_or_fails(shop):
    file = shop.write(f"{shop.name}.other", "A = 1\n")
    shop.load("answers")
    before = shop.look()
    assert f"{shop.name}.other" in before.modules
    shop.write(f"{shop.name}.other", "A = 2\n")
    assert shop.look().changed == {f"{shop.name}.other": str(file)}
    with pytest.raises(ImportError, match="was edited after this process loaded the program"):
        shop.load("other")
    assert shop.look().modules == before.modules
    shop.write(f"{shop.name}.other", "A = 1\n")
    assert shop.load("other").A == 1
    assert shop.look() == before


def test_an_edit_in_the_same_second_that_keeps_the_size_runs_as_it_is_recorded(shop):
    """Python itself takes the bytecode of before: it compares whole seconds and sizes."""
    file = shop.write(f"{shop.name}.late", "A = 1\n")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    py_compile.compile(str(file), doraise=True)
    shop.write(f"{shop.name}.late", "A = 2\n")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert shop.load("late").A == 2
    assert shop.look().modules[f"{shop.name}.late"] == digest_of(str(file))


def test_a_module_without_package_counts_with_those_that_lie_beside_it(home):
    single = Package(home)
    single.write(f"{single.name}_prompts", "TEXT = 'be brief'\n")
    single.write(single.name, f"from {single.name}_prompts import TEXT\n")
    importlib.import_module(f"{single.name}_prompts")
    file = single.write(f"{single.name}_prompts", "TEXT = 'be thorough'\n")
    # Asked for before it is imported: loading it now would mix new code with old.
    assert imported_source([f"{single.name}:Answer"]).changed == {f"{single.name}_prompts": str(file)}


def test_modules_of_other_directories_and_of_installed_libraries_do_not_count(shop):
    shop.load("answers")
    assert not any(name.startswith(("dspool", "dspy", "json")) for name in shop.look().modules)
    assert {name.partition(".")[0] for name in imported_source(["dspy.predict:Predict"]).modules} == {"dspy"}
    assert {name.partition(".")[0] for name in imported_source(["json:loads"]).modules} == {"json"}


def test_a_package_without_init_and_a_link_count_by_their_files(shop, tmp_path):
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text("A = 1\n")
    nameless = Package(shop.home)
    (shop.home / nameless.name).mkdir()
    (shop.home / nameless.name / "linked.py").symlink_to(elsewhere)
    importlib.invalidate_caches()
    nameless.load("linked")
    assert nameless.look().changed == {}
    elsewhere.write_text("A = 2\n")
    assert set(nameless.look().changed) == {f"{nameless.name}.linked"}


def test_a_module_in_an_archive_counts_by_its_own_content(tmp_path, monkeypatch, home):
    package = Package(home)

    def pack(**texts):
        with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
            for module, text in texts.items():
                archive.writestr(f"{package.name}/{module}.py", text)

    pack(__init__="", answers="A = 1\n", other="A = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "shop.zip"))
    package.load("answers")
    assert package.look().changed == {}
    pack(__init__="", answers="A = 1\n", other="A = 2\n")
    assert package.look().changed == {}
    pack(__init__="", answers="A = 2\n")
    assert set(package.look().changed) == {f"{package.name}.answers"}
    (tmp_path / "shop.zip").write_bytes(b"no archive")
    assert set(package.look().changed) == {package.name, f"{package.name}.answers"}


def test_a_module_without_source_counts_by_its_compiled_file(shop):
    source = shop.write(f"{shop.name}.compiled", "A = 1\n")
    py_compile.compile(str(source), cfile=str(source.with_suffix(".pyc")))
    source.unlink()
    shop.load("compiled")
    assert f"{shop.name}.compiled" in shop.look().modules
    assert shop.look().changed == {}
    source.with_suffix(".pyc").write_bytes(b"another")
    assert set(shop.look().changed) == {f"{shop.name}.compiled"}


def test_modules_that_were_never_files_are_left_alone(shop, monkeypatch):
    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("it imports something now")

    shop.load("answers")
    for name, module in (
        ("made", types.ModuleType("made")),
        ("lazy", Lazy("lazy")),
        ("none", None),
        ("odd", 7),
    ):
        monkeypatch.setitem(sys.modules, f"{shop.name}.{name}", module)
        monkeypatch.setitem(sys.modules, f"{shop.name}_{name}", module)
    assert len(shop.look().modules) == 3
    assert imported_source(["builtins:print", "sys:exit"]).modules == {}


@pytest.mark.parametrize("path", ["", ":", ".", "..:A", ".shop:A", "no such:A", "shop\0:A", "a/../b:C"])
def test_whatever_is_asked_for_is_no_error(path):
    assert imported_source([path]).changed == {}


def test_a_host_tells_only_what_an_import_path_may_name(shop):
    shop.load("answers")
    path = f"{shop.name}.answers:Answer"
    assert SessionHost(PoolConfig()).source([path]).modules == {}
    assert len(SessionHost(PoolConfig(allowed_imports=(shop.name,))).source([path]).modules) == 3


def test_what_a_preloaded_parent_imported_is_known_in_what_it_forks(shop):
    """The file is edited between the import in the parent and the first look in the child."""
    script = f"""
        import os, sys
        sys.path.insert(0, {str(shop.home)!r})
        from dspool.programs.sources import imported_source
        import {shop.name}.answers
        if os.fork():
            os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
        with open({shop.name}.answers.__file__, "a") as file:
            file.write("MORE = 1")
        sys.stdout.write(",".join(imported_source(["{shop.name}.answers:A"]).changed))
        sys.stdout.flush()
        os._exit(0)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"{shop.name}.answers"


def test_a_directory_or_nothing_has_no_digest(tmp_path):
    assert digest_of(str(tmp_path)) == digest_of(str(tmp_path / "nothing" / "there.py")) == ""


@pytest.mark.parametrize(
    ("version", "paths"),
    [
        ({"spec": {"signature": "a -> b"}}, ()),
        ({"import_path": "a.b:C", "spec": {"lm": "fast"}}, ("a.b:C",)),
        ({"spec": {"settings": {"tools": ["t:u", "t:v"], "reward": "r:s"}}}, ("r:s", "t:u", "t:v")),
        ({"spec": {"settings": {"tools": "t:u", "reward": 3}}}, ()),
        ({"spec": {"settings": {"tools": [1, None, "t:u"]}}}, ("t:u",)),
        ({"spec": {"settings": ["tools"]}}, ()),
    ],
)
def test_all_import_paths_of_a_version_are_found_whatever_else_its_spec_holds(version, paths):
    assert import_paths(Deployment("p", 1, **version)) == paths
