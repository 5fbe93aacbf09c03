"""A pool whose programs cannot be loaded says so at once, with the exception and its text."""

from __future__ import annotations

import asyncio
import sys

import pytest

from dspool.config import CustomCode, ImportModules, PoolConfig
from dspool.core.lifecycle.loading import lasts
from dspool.errors import (
    InvalidRequest,
    ModelUnreachable,
    NotAllowed,
    PoolError,
    ProgramError,
    StoreFailed,
    WorkerLost,
    WorkerStartFailed,
)
from dspool.programs.program import Definition
from dspool.programs.sessions.host import SessionHost
from dspool.testing.host import LoopbackPool
from tests.unit.supervision import only, pool

BODIES = {
    "needs_variable": (
        "import os\nKEY = os.environ['PINECONE_API_KEY_OF_NOBODY']\n",
        "'PINECONE_API_KEY_OF_NOBODY'",
    ),
    "needs_module": ("import json\nimport pinecone_of_nobody\n", "No module named 'pinecone_of_nobody'"),
    "exits": ("import sys\nx = 1\nsys.exit('give me a key')\n", "give me a key"),
    "interrupted": ("raise KeyboardInterrupt\n", ""),
    "mistyped": ("x = 1\ndef f(:\n", "invalid syntax"),
    "circular": ("import circular_too\n", "partially initialized module 'circular_too'"),
    "circular_too": (
        "import circular\nfrom circular_too import nothing\n",
        "partially initialized module 'circular_too'",
    ),
    "attribute": ("import json\njson.nothing\n", "module 'json' has no attribute 'nothing'"),
    "unspeakable": ("class E(Exception):\n  def __str__(self): raise SystemExit\nraise E\n", ""),
    "unpicklable": ("class E(Exception):\n  def __reduce__(self): raise SystemExit\nraise E('no')\n", "no"),
    "grouped": ("raise ExceptionGroup('two', [ValueError('a'), OSError('b')])\n", "two (2 sub-exceptions)"),
    "huge": ("raise ValueError('x' * 10_000_000)\n", "xxxx"),
    "half": ("raise ValueError('\\ud800')\n", "\\ud800"),
    "secretive": ("import os\nraise ValueError(os.environ['SHOP_TOKEN'])\n", "..."),
}
CONSTRUCTED = "\n".join(
    f"class {name}(dspy.Module):\n  def __init__(self): {body}\n  def forward(self): return {{}}"
    for name, body in {
        "Raises": "raise ValueError('no index at /data')",
        "Exits": "import sys; sys.exit('no index')",
        "Interrupted": "raise KeyboardInterrupt",
        "Unset": "import os; os.environ['PINECONE_API_KEY_OF_NOBODY']",
    }.items()
)


@pytest.fixture(scope="module", autouse=True)
def shop(tmp_path_factory):
    home = tmp_path_factory.mktemp("shop")
    (home / "loadshop").mkdir()
    (home / "loadshop" / "__init__.py").write_text("")
    for name, (body, _) in BODIES.items():
        (home / f"{name}.py").write_text(body)
    (home / "constructed.py").write_text(f"import dspy\n{CONSTRUCTED}\n")
    (home / "loadshop" / "answers.py").write_text("import loadshop.missing_part\n")
    sys.path.insert(0, str(home))
    yield
    sys.path.remove(str(home))


def failure_of(path: str) -> PoolError:
    top = path.partition(":")[0].partition(".")[0]
    host = SessionHost(PoolConfig(name="t", allowed_imports=(top, "loadshop")))
    with pytest.raises(PoolError) as failed:
        host.load(Definition(import_path=path))
    return failed.value


@pytest.mark.parametrize("name", BODIES)
def test_a_module_that_cannot_be_imported_says_exception_text_and_the_authors_line(name, monkeypatch):
    monkeypatch.setenv("SHOP_TOKEN", "123456789")
    failed = failure_of(f"{name}:Answer")
    text = BODIES[name][1]
    assert type(failed) is ProgramError
    assert text in failed.details.get("text", "")
    assert f"importing {name}:Answer raised {failed.exception} at " in str(failed)
    where = f"{name}.py" if name == "mistyped" else "circular" if "circular" in name else f"{name}:"
    assert where in failed.at
    if name == "mistyped":
        assert failed.at.endswith("mistyped.py:2")
    assert len(str(failed)) < 3000
    assert "123456789" not in str(failed)
    str(failed).encode()
    assert lasts(failed)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Raises", "no index at /data"),
        ("Exits", "no index"),
        ("Interrupted", ""),
        ("Unset", "'PINECONE_API_KEY_OF_NOBODY'"),
    ],
)
def test_a_constructor_that_raises_says_so_too(name, text):
    failed = failure_of(f"constructed:{name}")
    assert type(failed) is ProgramError
    assert (failed.details.get("text", ""), failed.at.partition(":")[0]) == (text, "constructed")
    assert str(failed).startswith(f"making constructed:{name} raised ")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere_at_all:Answer", "there is no module nowhere_at_all"),
        ("loadshop.nowhere:Answer", "there is no module loadshop.nowhere"),
        ("constructed:Nobody", "constructed itself binds no such name"),
    ],
)
def test_only_a_program_that_is_missing_is_reported_as_missing(path, says):
    failed = failure_of(path)
    assert type(failed) is InvalidRequest
    assert says in failed.message


def test_a_part_of_the_package_that_is_missing_is_not_the_program():
    failed = failure_of("loadshop.answers:Answer")
    assert type(failed) is ProgramError
    assert (failed.text, failed.at) == ("No module named 'loadshop.missing_part'", "loadshop.answers:1")


@pytest.mark.parametrize(
    ("failed", "is_lasting"),
    [
        (InvalidRequest("no such module"), True),
        (NotAllowed("not within allowed_imports"), True),
        (ProgramError("raised", exception="KeyError"), True),
        (ProgramError("raised", exception="FileNotFoundError"), True),
        (WorkerStartFailed("step failed", exception="SystemExit"), True),
        (ProgramError("raised", exception="ConnectionRefusedError"), False),
        (ProgramError("raised", exception="ReadTimeout"), False),
        (ProgramError("raised", exception="HTTPStatusError"), False),
        (ProgramError("raised", exception="OSError"), False),
        (ProgramError("raised", exception="MemoryError"), False),
        (WorkerStartFailed("did not come"), False),
        (ModelUnreachable("away"), False),
        (StoreFailed("away"), False),
        (WorkerLost("died"), False),
        (TimeoutError(), False),
    ],
)
def test_what_may_pass_is_told_from_what_lasts(failed, is_lasting):
    assert lasts(failed) is is_lasting


async def test_a_pool_whose_program_cannot_be_loaded_fails_at_once_and_says_why():
    lasting = ProgramError("importing shop:A raised KeyError at shop:1", exception="KeyError", text="'KEY'")
    async with pool(only(step_faults={0: lasting}), pool_size=2) as s:
        with pytest.raises(WorkerStartFailed, match="importing shop:A raised KeyError at shop:1: 'KEY'"):
            await asyncio.wait_for(s.supervisor.wait_ready(600.0), 60.0)
        assert "'KEY'" in (await s.status()).reason


async def test_a_pool_whose_service_is_away_goes_on_trying_and_says_why():
    passing = ProgramError("making shop:A raised ConnectError at shop:1", exception="ConnectError")
    async with pool(only(step_faults={0: passing}), pool_size=1) as s:
        waiting = asyncio.ensure_future(s.supervisor.wait_ready(60.0))
        await s.clock.advance(1.0)
        assert not waiting.done()
        assert "ConnectError" in (await s.status()).reason
        waiting.cancel()


@pytest.mark.parametrize(
    "step", [ImportModules(modules=("needs_variable",)), CustomCode(import_path="needs_variable:go")]
)
async def test_a_step_of_the_warm_up_says_the_authors_line(step):
    async with LoopbackPool(PoolConfig(name="t")) as loopback:
        worker = await loopback.start_worker()
        worker._host = SessionHost(PoolConfig(name="t"))
        with pytest.raises(WorkerStartFailed) as failed:
            await worker.warm(step, [])
    assert "raised KeyError at needs_variable:2: 'PINECONE_API_KEY_OF_NOBODY'" in failed.value.message
    assert lasts(failed.value)
