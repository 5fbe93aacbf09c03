"""No token that may do nothing else writes the audit log full, and what admins did out of it."""

from __future__ import annotations

from tests.security.test_audit import World


async def log_in(world, who, times, address="192.0.2.1"):
    async with world.http(who, address) as http:
        for _ in range(times):
            answer = await http.post("/dashboard/login", json={"token": world.texts[who]})
            assert answer.status_code == 200


async def test_logins_that_repeat_are_two_lines(tmp_path):
    world = World(tmp_path)
    await log_in(world, "rea", 50)
    await log_in(world, "root", 1)
    await log_in(world, "rea", 1, "192.0.2.2")
    first, admins, elsewhere, summed = world.records()
    assert (first["event"], first["principal"], first["role"]) == ("done", "rea", "reader")
    assert (admins["principal"], elsewhere["client"]) == ("root", "192.0.2.2")
    assert (summed["event"], summed["principal"], summed["times"]) == ("done", "rea", 49)
    assert summed["route"] == "/dashboard/login"
