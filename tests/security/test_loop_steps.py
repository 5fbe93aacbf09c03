"""Nothing that a caller sends holds the event loop of a worker or of an ingress process for more than 50 ms."""

from __future__ import annotations

import asyncio

from tests.security.corpus import of
from tests.security.loop_steps import LIMIT_S, Clock, measure


def test_no_step_of_a_loop_is_long_whatever_a_caller_sends():
    slow = [str(step) for step in measure() if step.seconds > LIMIT_S]
    assert not slow, slow


def test_the_measurement_sees_a_step_that_is_long():
    """What took 1.3 s before the parser became linear, on the loop as it was."""
    clock = Clock()

    async def main() -> None:
        import re

        quadratic = re.compile(r"\s*([A-Za-z_]\w*)\s*(?::\s*(.+?))?\s*", re.DOTALL)
        assert quadratic.fullmatch("a" + " " * 6_000 + "! ") is None

    with clock.watching():
        asyncio.new_event_loop().run_until_complete(main())
    assert clock.longest_s > LIMIT_S / 2
    assert of("signature")[0].name == "spaces before a mark that is no type"
