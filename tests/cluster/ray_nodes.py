"""A Ray cluster on machines, started as `cluster.yaml` starts it: with a token, Serve behind HAProxy."""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from tests.cluster.machine import HOME, ROOT, Machine

PORT: Final = 6379
_SMALL: Final = ("--num-cpus=2", "--object-store-memory=100000000", "--include-log-monitor=false")
"""Machines of the bench share the processors of one."""
_VARIABLE: Final = re.compile(r"\b(RAY_\w+)=(\S+)")
_RAY: Final = """
import time
from ray._private import services

find = services.get_node


def patiently(*args, **kwargs):
    until = time.monotonic() + 240
    while True:
        try:
            return find(*args, **kwargs)
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


services.get_node = patiently
from ray.scripts.scripts import main

main()
"""
"""The command `ray`, which by itself gives a raylet 30 s to start: too little on a busy machine."""
_ASK: Final = """
import json, sys, ray
ray.init(address=sys.argv[1], namespace="dspool", log_to_driver=False, logging_level="ERROR")
nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
actors = [
    {"name": actor["Name"], "address": nodes.get(actor["Address"]["NodeID"], ""), "state": actor["State"]}
    for actor in ray._private.state.actors().values()
]
print(json.dumps({"nodes": sorted(nodes.values()), "by_address": {nodes[id]: id for id in nodes}, "actors": actors}))
"""


def variables(role: Literal["head", "worker"]) -> dict[str, str]:
    """What `cluster.yaml` sets for a node."""
    commands = yaml.safe_load((ROOT / "cluster.yaml").read_text())[f"{role}_start_ray_commands"]
    [command] = [command for command in commands if "ray start" in command]
    return dict(_VARIABLE.findall(command.partition("ray start")[0]))


class RayNodes:
    """The first machine is the head. With `redis` its control plane is kept there, and survives it."""

    def __init__(self, machines: Sequence[Machine], *, redis: str | None = None) -> None:
        self.machines = list(machines)
        self.head = self.machines[0]
        self.address = f"{self.head.address}:{PORT}"
        common = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_worker_prestart": "0"}
        self.variables = {**variables("worker"), **common}
        """Of every node but the head, and of what joins the cluster."""
        self._of_head = {**variables("head"), **common}
        if redis is not None:
            self._of_head["RAY_REDIS_ADDRESS"] = redis
        self._token = secrets.token_hex(32)

    def start(self) -> None:
        self.start_on(self.head)
        with ThreadPoolExecutor() as side_by_side:
            list(side_by_side.map(self.start_on, self.machines[1:]))

    def start_on(self, machine: Machine) -> None:
        """Boot it if it is off, and start Ray there."""
        if not machine.is_on:
            machine.boot()
        token = Path(HOME, ".ray", "auth_token")
        write = f"umask 077; mkdir -p {token.parent}; printf %s {self._token} > {token}"
        machine.run(["sh", "-c", write])
        where = (
            ("--head", f"--port={PORT}", "--dashboard-host=127.0.0.1")
            if machine is self.head
            else (f"--address={self.address}",)
        )
        machine.run(
            [
                sys.executable,
                "-c",
                _RAY,
                "start",
                *where,
                f"--node-ip-address={machine.address}",
                "--disable-usage-stats",
                *_SMALL,
            ],
            **(self._of_head if machine is self.head else self.variables),
        )

    def seen(self) -> dict[str, Any]:
        """`nodes`, the addresses of the living ones, their ids `by_address`, and `actors`, as the head sees them."""
        asked = self.head.run([sys.executable, "-c", _ASK, self.address], **self.variables)
        # Ray prints what it has to say of lost nodes there as well, before and after.
        [answer] = [line for line in asked.stdout.splitlines() if line.startswith('{"nodes"')]
        found: dict[str, Any] = json.loads(answer)
        return found
