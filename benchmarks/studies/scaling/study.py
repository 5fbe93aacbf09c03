"""What size costs: workers, slots, sessions, clients, payloads, a long queue; where each curve bends, and on what.

    python -m benchmarks.scaling [--json] [--quick] [--only PART,...] [--picture FILE]

Each curve says up to where it keeps to its ideal (80 % of it), and how busy the processors were where it no longer
does: the reason is read off the machine, not guessed. Without an ideal a curve is given as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks.charts import curve_chart
from benchmarks.common import about, arguments, attempt, finish, header, ray_cluster
from benchmarks.studies.scaling import capacity, volume
from benchmarks.studies.scaling.curves import Curve, note

PARTS: dict[str, Callable[[Path, bool], Awaitable[list[Curve]]]] = {
    "queue": volume.queue,  # first: what others leave in the heap of this process would hide what a queue takes
    "workers": capacity.workers,
    "slots": capacity.slots,
    "clients": capacity.clients,
    "starts": capacity.starts,
    "sessions": volume.sessions,
    "payloads": volume.payloads,
}

PART_LIMIT_S = 300.0


def picture(curves: list[Curve]) -> str:
    """One page with every curve."""
    charts = "".join(
        f"<figure>{curve_chart(curve.told())}<figcaption>{note(curve)}</figcaption></figure>"
        for curve in curves
    )
    facts = ", ".join(f"{key} {value}" for key, value in about().items())
    return (
        f"<!doctype html><meta charset=utf-8><title>dspool: cost against size</title><p>{facts}</p>{charts}"
    )


async def main() -> int:
    parser = arguments(__doc__ or "", tuple(PARTS))
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the curves as one HTML page")
    options = parser.parse_args()
    header("scaling: cost against size")

    curves: list[Curve] = []
    broken: dict[str, str] = {}
    with ray_cluster("dsp-c-") as directory:
        for part in options.only:
            began = time.perf_counter()
            work = PARTS[part](directory / part, options.quick)
            for curve in await attempt(part, work, PART_LIMIT_S, broken) or ():
                curves.append(curve)
                print(f"  {curve.title}")
                for point in curve.points:
                    print("    " + ", ".join(f"{key} {value:,g}" for key, value in point.items()))
                print(f"    {note(curve)}", flush=True)
            print(f"  ({part} took {time.perf_counter() - began:.0f} s)", flush=True)
    if options.picture:
        options.picture.write_text(picture(curves))
    finish(
        {"curves": [curve.told() for curve in curves], "failed_parts": broken, "quick": options.quick},
        as_json=options.json,
    )
    return 1 if broken else 0
