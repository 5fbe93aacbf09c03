"""Another node of a Ray cluster on this machine, under a loopback address of its own, until its input is closed.

    python -m benchmarks.second_node ADDRESS IP

`ray start` takes a cluster on loopback for one at this machine's address, where it does not listen.
"""

from __future__ import annotations

import sys

from ray._private.node import Node
from ray._private.parameter import RayParams


def main(address: str, ip: str) -> None:
    parameters = RayParams(
        gcs_address=address,
        node_ip_address=ip,
        num_cpus=2,
        object_store_memory=100_000_000,
        include_log_monitor=False,
    )
    Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
