"""Small programs, one question each: `python -m benchmarks.NAME --json`.

How a pool does: targets (what it is to reach), throughput, programs (a team's own), http, recovery, start, telemetry,
dashboard, soak, chaos. How its code is made: structure. Studies, whose parts are in `studies/`: sizing, peers, scaling,
startup. About all of them: report (runs them and writes one page), quote (the README's figures from it), smoke
(whether each still runs).
"""
