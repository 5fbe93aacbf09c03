"""The processor time that a call of a model behind HTTP costs a worker, beside what it costs without our corrections.

Two processes call the same server, which answers after 50 ms, in short slices that take turns; each pair of slices
gives a ratio, all of them its interval. `before` is DSPy with the corrections that dspool had before those of `SINCE`.

- call: one call of the LM, as a program makes it.
- program: an operation of a `Predict` in a worker, with prompt and parsing, without the way to and from the worker.
- stream: the same, streamed.
- clients: one call over the clients of other libraries in place of DSPy's transport.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks.common import arguments, finish, header
from benchmarks.model_caller import FOREIGN
from benchmarks.ratios import Ratio, paired
from benchmarks.services import model_server, process

TO_REACH = 0.5
SINCE = ("dspy-transport", "dspy-lean-call")
"""The corrections that are measured."""
CALLERS = 32
CALLS = {"call": 400, "program": 400, "stream": 100}
"""Of one slice."""
PARTS = (*CALLS, "clients")
SLICES, QUICK_SLICES = 12, 2


class Caller:
    """A process of `benchmarks.model_caller`."""

    def __init__(self, started: subprocess.Popen[str]) -> None:
        assert started.stdin is not None
        assert started.stdout is not None
        self._say, self._hear = started.stdin, started.stdout

    def us(self, part: str, calls: int) -> float:
        """Of processor time a call."""
        self._say.write(json.dumps({"part": part, "calls": calls, "callers": CALLERS}) + "\n")
        self._say.flush()
        return float(json.loads(self._hear.readline())["us"])


@contextlib.contextmanager
def caller(port: int, transport: str, corrections: str = "all") -> Iterator[Caller]:
    """Its standard error is ours: what goes wrong in it is seen."""
    command = [
        "/usr/bin/env",
        f"DSPOOL_CORRECTIONS={corrections}",
        sys.executable,
        "-m",
        "benchmarks.model_caller",
    ]
    with process([*command, str(port), transport], stdout=subprocess.PIPE) as started:
        yield Caller(started)


def in_turn(callers: dict[str, Caller], part: str, calls: int, slices: int) -> dict[str, list[float]]:
    """Microseconds of a call by caller, a slice each in turn: forwards and, the next time, backwards."""
    taken: dict[str, list[float]] = {name: [] for name in callers}
    for one in callers.values():
        one.us(part, max(CALLERS, calls // 4))
    for turn in range(slices):
        for name in list(callers)[:: 1 if turn % 2 == 0 else -1]:
            taken[name].append(callers[name].us(part, calls))
    return taken


def told(part: str, taken: dict[str, list[float]], base: str) -> dict[str, Ratio]:
    """The ratio of each to `base`, printed."""
    found = {}
    for name, values in taken.items():
        line = f"  {part:8s} {name:10s} {statistics.median(values):8,.0f} us"
        if name != base and (ratio := paired(values, taken[base])) is not None:
            found[name] = ratio
            line += f"  {ratio} of {base}"
        print(line, flush=True)
    return found


def main() -> int:
    options = arguments(__doc__ or "", PARTS).parse_args()
    slices = QUICK_SLICES if options.quick else SLICES
    header("model_call: processor time of one call, 32 callers, a model of 50 ms behind HTTP")
    without = ",".join(f"-{name}" for name in SINCE)
    ratios: dict[str, Any] = {}
    us: dict[str, dict[str, float]] = {}
    with model_server(0.05) as port:
        with caller(port, "installed", without) as before, caller(port, "installed") as now:
            for part in (part for part in CALLS if part in options.only):
                calls = CALLS[part] // (4 if options.quick else 1)
                taken = in_turn({"before": before, "now": now}, part, calls, slices)
                us[part] = {name: round(statistics.median(values), 1) for name, values in taken.items()}
                ratios[part] = told(part, taken, "before")["now"].figures(less_is_better=True)
        if "clients" in options.only:
            with contextlib.ExitStack() as running:
                # The rest of the call is the same in all: as it is now.
                kinds = {"lean": ("installed", "all"), "dspy": ("installed", "-dspy-transport")}
                kinds |= {name: (name, "-dspy-transport") for name in FOREIGN}
                callers = {name: running.enter_context(caller(port, *how)) for name, how in kinds.items()}
                taken = in_turn(callers, "call", CALLS["call"] // (4 if options.quick else 1), slices)
            us["clients"] = {name: round(statistics.median(values), 1) for name, values in taken.items()}
            found = told("clients", taken, "dspy")
            ratios["clients"] = {name: ratio.figures(less_is_better=True) for name, ratio in found.items()}
    finish({"ratios": ratios, "us": us, "to_reach": TO_REACH, "slices": slices}, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
