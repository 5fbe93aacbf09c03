"""The bench itself: what happens to a machine is what would happen to a real one."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.cluster.machine import DISK
from tests.cluster.possible import why_no_delay

LISTEN = """
import socket
server = socket.create_server(("0.0.0.0", 7000))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    while data := connection.recv(100):
        connection.sendall(data)
"""
SILENT_S = 0.3


@pytest.fixture
def machine(bench):
    machine = bench[2]
    if not machine.is_on:
        machine.boot()
    return machine


@pytest.fixture
def echo(machine):
    """A connection to a program on the machine that sends back what it gets."""
    program = machine.start([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    program.stdout.readline()
    with socket.create_connection((machine.address, 7000), timeout=60) as connection:
        assert answers(connection)
        yield connection
    if machine.is_on:
        machine.signal(program, 9)
    program.wait(60)
    program.stdout.close()


def answers(connection: socket.socket) -> bool:
    connection.sendall(b"?")
    return bool(connection.recv(100))


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(SILENT_S)
    try:
        answers(connection)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(60)
    return False


def test_a_machine_has_a_name_processes_files_and_a_network_of_its_own(machine):
    seen = machine.run(
        ["sh", "-c", "hostname; echo $$; ls /tmp /dev/shm; ip -o -4 addr show dev eth0"]
    ).stdout
    assert seen.split()[0] == machine.name
    assert int(seen.split()[1]) < 1000
    assert machine.address in seen
    machine.run(["sh", "-c", f"echo kept > {DISK}/file; echo lost > /tmp/file"])
    machine.power_off()
    assert not machine.is_on
    machine.boot()
    assert machine.run(["cat", f"{DISK}/file"]).stdout == "kept\n"
    assert machine.run(["cat", "/tmp/file"], check=False).returncode != 0


def test_what_is_cut_off_is_silent_and_goes_on_where_it_was(machine, echo):
    machine.cut()
    assert is_silent(echo)
    machine.mend()
    assert echo.recv(100)


def test_what_is_frozen_does_nothing_and_goes_on_where_it_was(machine, echo):
    machine.freeze()
    assert is_silent(echo)
    machine.thaw()
    assert echo.recv(100)


def test_who_is_connected_hears_nothing_of_a_power_off_and_of_a_crash_at_once(machine, echo):
    machine.power_off()
    assert is_silent(echo)
    machine.boot()
    program = machine.start([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    program.stdout.readline()
    with socket.create_connection((machine.address, 7000), timeout=60) as connection:
        assert answers(connection)
        machine.crash()
        assert not connection.recv(100)
    program.wait(60)
    program.stdout.close()


@pytest.mark.skipif(why_no_delay() != "", reason=why_no_delay())
def test_what_is_slow_answers_later(machine, echo):
    machine.slow(200)
    echo.settimeout(0.1)
    with pytest.raises(TimeoutError):
        answers(echo)
    machine.slow(0)
