"""Logging in and out again and again fills nothing, and takes no other login's end away."""

from __future__ import annotations

import httpx

from dspool.store.logins import KEPT_EACH
from dspool.store.store import SessionStore
from tests.dashboard_demo import application, tokens_for
from tests.simulated_pool import SimulatedPool

OWN_PAGE = {"x-dspool-csrf": "login"}


async def test_a_process_keeps_no_more_ended_logins_than_the_store():
    texts, source = tokens_for(eve="reader")
    app = application(SimulatedPool(workers=1, history_s=2), tokens=source)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=OWN_PAGE) as http:
        for _ in range(3 * KEPT_EACH):
            # Each ends the one before.
            answer = await http.post("/dashboard/login", json={"token": texts["eve"]})
            assert answer.status_code == 200
    ended = app._console.dashboard.logins._ended
    assert sum(map(len, ended.values())) == KEPT_EACH


async def test_a_login_that_was_just_ended_is_not_the_one_that_makes_room(tmp_path):
    """It began before all others, and so would have been over first."""
    store = SessionStore(f"sqlite:///{tmp_path}/dspool.db", clock=lambda: 0.0)
    await store.open()
    for number in range(KEPT_EACH + 1):
        await store.end_login("p", "a", f"n{number}", 200.0)
    ended = await store.end_login("p", "a", "old", 100.0)
    assert "old" in ended["a"]
    assert len(ended["a"]) == KEPT_EACH
    await store.close()
