"""Where the parent of forked workers lives: one private directory for each job, node and environment."""

from __future__ import annotations

import os
import socket
import stat
import sys
import time

import pytest

from dspool.runtime.forkserver import handover
from dspool.runtime.forkserver.parent import Parent
from dspool.runtime.forkserver.places import HOW_VARIABLE, Place, Unavailable
from dspool.runtime.forkserver.shim import ask
from tests.unit.forked import RAY, WORKER

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")


def test_a_job_a_node_and_an_environment_have_a_parent_of_their_own():
    def of(worker=WORKER, environ=RAY, modules="", python="/python"):
        return Place.of(worker, environ, modules, python).directory

    places = [
        of(),
        of(environ={**RAY, "RAY_JOB_ID": "02000000"}),
        of(environ={**RAY, "PYTHONHASHSEED": "1"}),
        of([*WORKER[:-1], "other"]),
        of(modules="litellm"),
        of(python="/other"),
    ]
    assert len(set(places)) == len(places)
    assert of(environ={**RAY, "PWD": "/elsewhere", HOW_VARIABLE: "fork"}) == places[0]


def test_a_worker_that_ray_says_too_little_about_is_not_forked():
    with pytest.raises(Unavailable, match="RAY_JOB_ID"):
        Place.of(WORKER, {}, "", "/python")
    with pytest.raises(Unavailable, match="too long"):
        Place.of([*WORKER, "--temp-dir=/" + "x" * 100], RAY, "", "/python")


def test_only_this_user_may_enter_the_directory_and_use_the_socket(place, parent):
    parent()
    assert stat.S_IMODE(place.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.socket.stat().st_mode) == 0o600
    place.directory.chmod(0o755)
    with pytest.raises(Unavailable, match="only this user"):
        place.make()


def test_whoever_is_another_user_gets_no_worker_and_no_worker_comes_from_another_user(place, monkeypatch):
    parent = Parent(place, raylet=None)
    other = (1, os.geteuid() + 1)
    monkeypatch.setattr(handover, "peer", lambda connection: other)
    with pytest.raises(Unavailable, match=f"belongs to user {other[1]}"):
        ask(place, handover.here(["x.py"]))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(place.socket))
        # The shim's connection from above, and this one.
        assert parent._answer() is None
        assert parent._answer() is None
        assert stranger.recv(100) == b""
    assert parent._facts()["forked"] == 0
    parent.close()


def test_the_kernel_says_who_the_other_end_is():
    here, there = socket.socketpair()
    with here, there:
        assert handover.peer(here) == (os.getpid(), os.geteuid())


def test_a_link_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "forkserver").symlink_to(tmp_path / "mine")
    with pytest.raises(Unavailable):
        Place(tmp_path / "forkserver" / "key").make()


def test_the_lock_is_held_by_one_at_a_time_and_removing_takes_all_away(place):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.socket))
        inode = place.socket.stat().st_ino
        with place.locked(0.0) as mine:
            assert mine
            with place.locked(0.0) as other:
                assert not other
            place.remove(inode)
            assert place.socket.exists()
        place.remove(inode + 1)
        assert place.socket.exists()
        place.remove(inode)
        assert not place.directory.parent.exists()


def test_a_parent_that_takes_its_directory_away_keeps_no_shim_waiting(place):
    # The shim has made the directory, found a socket that nobody serves any more, and now wants to start a parent.
    place.directory.rmdir()
    place.directory.parent.rmdir()
    began = time.monotonic()
    with place.locked(300.0) as mine:
        assert mine
        assert place.directory.exists()
    assert time.monotonic() - began < 100.0


def test_a_directory_that_is_taken_away_while_it_is_made_is_made_again(place, monkeypatch):
    mkdir, taken = os.mkdir, []

    def taking(path, mode):
        mkdir(path, mode)
        if not taken and path == place.directory.parent:
            taken.append(path)
            os.rmdir(path)

    place.directory.rmdir()
    place.directory.parent.rmdir()
    monkeypatch.setattr(os, "mkdir", taking)
    place.make()
    assert taken
    assert place.directory.exists()
