"""A million kept operations, and the searches that an operator asks of them: the costliest that there are."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlencode
from urllib.request import urlopen

from dspool.config import PoolConfig
from dspool.core.metrics.operation_records import EndedOperation
from dspool.telemetry.operation_keeper import operations_file
from dspool.telemetry.operation_store import OperationStore

DAYS: Final = 6
SEARCHES: Final[dict[str, dict[str, str]]] = {
    "newest": {},
    "nothing": {"error": "NoSuchError"},
    "rare error": {"error": "RareError"},
    "rare error, by duration": {"error": "RareError", "sort": "duration"},
    "slowest": {"sort": "duration"},
    "slowest failed of a version": {"outcome": "failed", "version": "2", "sort": "duration"},
    "part of an id that none has": {"text": "zz9"},
    "middle of an id": {"text": "-500001"},
    "all filters, nothing": {
        "program": "qa", "version": "3", "outcome": "ok", "worker": "default-w3-aaaaaa", "at_least_s": "0.9",
        "text": "zz9", "range": "604800",
    },
    "session": {"session_hash": "s-4321"},
}  # fmt: skip


def operations(number: int) -> Iterator[EndedOperation]:
    """As many, over the last days, until now."""
    dice = random.Random(1)
    now = time.time()
    for n in range(number):
        took = 0.2 * dice.lognormvariate(0.0, 0.6)
        failed = n % 50 == 0
        rare = n % (number // 5) == 7
        yield EndedOperation(
            f"{0xABCDEF123456:x}-{n}", now - DAYS * 86_400 * (1 - n / number), took, took / 10, took * 0.9,
            "execute_program", f"qa{n % 7}" if n % 7 else "qa", 1 + n % 3, "error" if failed or rare else "ok",
            "program_error" if failed or rare else None,
            "RareError" if rare else "KeyError" if failed else None, "shop.answers:41" if failed else None,
            f"default-w{n % 9}-aaaaaa", 1, None, f"s-{n % 5000}" if n % 3 == 0 else None, None, "p-1", None,
        )  # fmt: skip


def fill(state_dir: Path, number: int) -> None:
    """The file of the pool `default`, before it starts."""
    store = OperationStore(
        operations_file(PoolConfig(name="default", state_dir=state_dir)), max_rows=2 * number
    )
    batch: list[EndedOperation] = []
    for one in operations(number):
        batch.append(one)
        if len(batch) == 5000:
            store.write(batch, time.time())
            batch = []
    store.write(batch, time.time())
    store.close()


def searched_ms(url: str, times: int) -> dict[str, float]:
    """The median time of each search, over HTTP."""
    medians = {}
    for name, query in SEARCHES.items():
        taken = []
        for turn in range(times):
            # Each another page: an answer is kept for a second.
            asked = urlencode({**query, "limit": 50 + turn})
            began = time.perf_counter()
            with urlopen(f"{url}/v1/pools/default/operations?{asked}", timeout=30) as answer:
                found = json.loads(answer.read())
            taken.append(1000 * (time.perf_counter() - began))
        medians[name] = round(statistics.median(taken), 1)
        print(f"  {name}: {medians[name]:.1f} ms, {len(found['operations'])} found", flush=True)
    return medians
