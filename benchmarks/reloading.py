"""How long it takes from saving a file of a program to the first answer of its new code, with `dspool dev`."""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from dspool_serve.ingress.haproxy import free_ports

START_S = 120.0
LATE_S = 60.0
_ASK_EVERY_S = 0.02
_SOURCE = """import dspy


class Numbered(dspy.Module):
    async def aforward(self) -> dspy.Prediction:
        return dspy.Prediction(number={number})
"""


def reload(saves: int) -> dict[str, Any]:
    """Save the program again and again, each time as another one, and ask until that one answers.

    Raises:
        TimeoutError: it does not come; or it was asked and failed.
    """
    with tempfile.TemporaryDirectory(prefix="dsp-v-") as directory:
        package = Path(directory) / "numbers_shop"
        package.mkdir()
        (package / "__init__.py").touch()
        file = package / "numbered.py"
        file.write_text(_SOURCE.format(number=0))
        with (
            _dev(Path(directory)) as url,
            httpx.Client(base_url=url, timeout=LATE_S, trust_env=False) as http,
        ):
            _until(http, 0, time.perf_counter())
            taken = []
            for number in range(1, saves + 1):
                saved = time.perf_counter()
                file.write_text(_SOURCE.format(number=number))
                taken.append(_until(http, number, saved))
                time.sleep(0.5)  # as nobody saves twice within one breath
    median = statistics.median(taken)
    print(f"  reload: {saves} saves, median {median:.2f} s, longest {max(taken):.2f} s", flush=True)
    return {"reload_s": round(median, 3), "reload_longest_s": round(max(taken), 3)}


def _until(http: httpx.Client, number: int, since: float) -> float:
    """Seconds until the program answers with this number."""
    while (taken := time.perf_counter() - since) < LATE_S:
        answer = http.post("/v1/pools/default/programs/numbered/execute", json={"inputs": {}})
        if answer.status_code == 200 and answer.json()["outputs"]["number"] == number:
            return time.perf_counter() - since
        time.sleep(_ASK_EVERY_S)
    raise TimeoutError(
        f"number {number} was not served {taken:.0f} s after it was saved: {answer.text[:300]}"
    )


@contextlib.contextmanager
def _dev(directory: Path) -> Iterator[str]:
    """`dspool dev` in that directory; its address once it serves."""
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "dspool.cli", "dev", "numbers_shop.numbered:Numbered", "--json"]
    with subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=directory,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    ) as running:
        late = threading.Timer(START_S, running.kill)
        late.start()
        try:
            assert running.stdout is not None
            for line in running.stdout:
                if json.loads(line).get("step") == "ready":
                    break
            else:
                raise TimeoutError(f"dspool dev did not serve within {START_S:g} s")
            late.cancel()
            threading.Thread(target=running.stdout.read, daemon=True).start()
            yield f"http://127.0.0.1:{port}"
        finally:
            late.cancel()
            running.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(20)
            running.kill()
