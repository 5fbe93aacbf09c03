"""What one turn of the loop writes to a connection leaves in one piece."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from dspool_serve.one_write import OneWrite


class Wire:
    """The transport below: remembers what reached it."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> str:
        return name


async def test_head_and_body_leave_together_and_the_next_answer_by_itself():
    wire = Wire()
    transport = OneWrite(wire, asyncio.get_running_loop())
    transport.write(b"head")
    transport.write(b"body")
    assert wire.pieces == []
    await asyncio.sleep(0)
    assert wire.pieces == [b"headbody"]
    transport.write(b"next")
    await asyncio.sleep(0)
    assert wire.pieces == [b"headbody", b"next"]


async def test_closing_sends_what_waits_first_and_nothing_is_sent_afterwards():
    wire = Wire()
    transport = OneWrite(wire, asyncio.get_running_loop())
    transport.write(b"last words")
    transport.close()
    assert wire.pieces == [b"last words"]
    transport.write(b"too late")
    await asyncio.sleep(0)
    assert wire.pieces == [b"last words"]
    assert transport.get_extra_info("peername") == "peername"


def test_a_uvicorn_of_the_installed_version_uses_it():
    """In a process of its own: it changes uvicorn for all servers that start later."""
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "from dspool_serve.one_write import install; assert install()\n"
            "import uvicorn; config = uvicorn.Config(lambda: None, factory=True); config.load()\n"
            "print(config.http_protocol_class.__module__)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "dspool_serve.one_write"
