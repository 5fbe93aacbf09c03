"""A client process of its own for tests; see `harness.SecondClient`. Says what happens as lines of JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from dspool import Pool, PoolError
from dspool.runtime.cluster import join_cluster


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def main() -> None:
    task = json.loads(sys.argv[1])
    join_cluster(task["address"])
    try:
        pool = await Pool.connect(task["pool"])
    except PoolError as refused:
        say(error=refused.code)
        return
    await pool.wait_ready()
    say(connected=[member.pid for member in pool.client.membership.workers])
    if "session" in task:
        sys.stdin.readline() if task.get("wait") else None
        session = pool.session(task["session"])
        results = await asyncio.gather(*(session.execute("p", **inputs) for inputs in task["inputs"]))
    else:
        results = await asyncio.gather(
            *(pool.execute("noted", timeout_s=700, **inputs) for inputs in task["inputs"])
        )
    say(labels=[result.label for result in results])
    await pool.close()


asyncio.run(main())
