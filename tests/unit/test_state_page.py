"""What `docs/how-to/state.md` says of state, done with the code that it shows."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from dspool.errors import UnknownName
from dspool.messages import Deployment
from dspool.testing import local_pool

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "state.md"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page's program as a module, and its function that asks."""
    program, asking = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "support_page.py").write_text(program, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    names = {"UnknownName": UnknownName}
    exec(asking, names)
    return names["ask"]


async def test_self_of_a_pool_program_is_shared_by_all_callers_and_is_gone_with_another_version(page):
    async with local_pool({"support": "support_page:Support"}) as pool:
        for times in (1, 2, 3):
            assert (await pool.execute("support", question="Where?")).outputs["times"] == times
        other = Deployment("support", 0, spec={"adapter": "json"}, import_path="support_page:Support")
        await pool.deploy(other, canary_s=0)
        assert (await pool.execute("support", question="Where?")).outputs["times"] == 1


async def test_self_of_a_sessions_program_is_that_sessions_own(page):
    async with local_pool({"support": "support_page:Support"}, allowed_imports=["support_page"]) as pool:
        for user in ("ada", "bob"):
            session = pool.session(user)
            await session.create_program("mine", import_path="support_page:Support")
            assert (await session.execute("mine", question="Where?")).outputs["times"] == 1
        assert (await pool.session("ada").execute("mine", question="Where?")).outputs["times"] == 2


async def test_what_a_user_said_is_in_the_sessions_variable_on_any_worker(page):
    def answer(call):
        return ", ".join(json.loads(call.inputs["notes"])) or "-"

    async with local_pool({"support": "support_page:Support"}, lm=answer) as pool:
        assert await page(pool, "ada", "one") == "-"
        assert await page(pool, "ada", "two") == "one"
        assert await page(pool, "bob", "three") == "-"
        (worker,) = (await pool.status()).workers
        await pool.restart(worker.id)
        assert await page(pool, "ada", "four") == "one, two"
