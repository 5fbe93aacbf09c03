"""Which changes of files `dspool dev` takes for changes of the programs."""

from __future__ import annotations

import os

import pytest
from watchfiles import Change

from dspool.cli.watching import Watch


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "answers.py").write_text("")
    return tmp_path


@pytest.fixture
def watch(here):
    return Watch(["shop.answers"], [here / "pool.yaml"])


@pytest.mark.parametrize(
    "name", ["shop/answers.py", "shop/prompt.txt", "shop/index.npy", "helper.py", "pool.yaml"]
)
def test_source_data_and_configuration_count(watch, here, name):
    assert watch.counts(here / name)


@pytest.mark.parametrize("name", ["dev.log", "shop/trace.log", "shop/cache.db-wal", "shop/cache.db-journal"])
def test_what_running_programs_write_does_not_count(watch, here, name):
    (here / name).write_text("")
    assert not watch.counts(here / name)


def test_data_beside_the_package_does_not_count_but_beside_a_program_in_one_file_it_does(watch, here):
    # Rows of an evaluation, what a shell wrote, notes.
    assert not watch.counts(here / "rows.jsonl")
    (here / "answers.py").write_text("")
    assert Watch(["answers"], []).counts(here / "words.json")


@pytest.mark.parametrize("number", [1, 2])
def test_the_file_that_its_output_goes_to_does_not_count_whatever_its_name(watch, here, number):
    # Else each line that it prints would load the programs anew, which prints a line.
    file = here / "shop" / "output.txt"
    before = os.dup(number)
    try:
        with file.open("w") as output:
            os.dup2(output.fileno(), number)
            counts = watch.counts(file)
    finally:
        os.dup2(before, number)
        os.close(before)
    assert not counts
    assert watch.counts(file)


def test_a_file_that_came_and_went_within_a_burst_is_no_change(watch, here):
    burst = {
        (Change.added, str(here / "shop" / "sedA1b2C3")),
        (Change.deleted, str(here / "shop" / "sedA1b2C3")),
        (Change.modified, str(here / "shop" / "answers.py")),
        (Change.deleted, str(here / "shop" / "gone.py")),
    }
    assert watch.changed(burst) == {here / "shop" / "answers.py", here / "shop" / "gone.py"}
