"""What Ray prints beside us while `dspool up` runs."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout

from dspool.cli.ray_output import RayOutput

DIED = (
    "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot the problem, "
    "check the logs for the dead worker. Lease ID: 0100 Worker ID: 9354 Node ID: c903 Worker exit type: SYSTEM_ERROR"
)
FULL = "There is no room left on the disk of node 1"


def test_of_a_process_that_died_ray_s_paragraph_is_left_out_and_all_else_is_passed_on():
    from ray._private.worker import print_worker_logs

    seen = io.StringIO()
    with redirect_stdout(RayOutput(seen)):
        for line in (DIED, FULL):
            print_worker_logs({"lines": [line], "pid": "raylet", "is_err": False}, sys.stdout)
        print("half a ", end="")
        print("line", flush=True)
    assert RayOutput(sys.stderr).encoding == sys.stderr.encoding
    assert DIED[:20] not in seen.getvalue()
    assert FULL in seen.getvalue()
    assert "half a line\n" in seen.getvalue()
