"""`dspool up` on the head of a cluster, as a user of `cluster.yaml` starts it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from dspool.tokens import issue
from tests.cluster.machine import DISK, Machine
from tests.cluster.ray_nodes import RayNodes

START_S: Final = 300
PORT: Final = 8000
_CONFIG: Final = DISK / "pool.yaml"
_STATE: Final = DISK / "state"
_TOKENS: Final = DISK / "tokens.yaml"


class Service:
    """Runs from its construction until `end`; `up` starts it again."""

    def __init__(self, nodes: RayNodes, config: dict[str, Any], *, host: str = "0.0.0.0") -> None:
        self.nodes, self.machine = nodes, nodes.head
        self._host = host
        tokens = self.machine.disk / _TOKENS.name
        self._token, _ = issue(tokens, "bench", "admin")
        for machine in nodes.machines[1:]:
            shutil.copy(tokens, machine.disk)
        config = {**config, "service": {"tokens_file": str(_TOKENS), **config.get("service", {})}}
        (self.machine.disk / _CONFIG.name).write_text(json.dumps(config))
        self._process: subprocess.Popen[str] | None = None
        self.facts: dict[str, Any] = {}
        self.up()

    @property
    def url(self) -> str:
        """By the head's address."""
        return self.url_on(self.machine)

    @staticmethod
    def url_on(machine: Machine) -> str:
        return f"http://{machine.address}:{PORT}"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._token}"}

    def up(self) -> None:
        flags = ["--address", self.nodes.address, "--host", self._host, "--port", str(PORT)]
        flags += ["--config", str(_CONFIG), "--state-dir", str(_STATE), "--json"]
        self._process = self.machine.start(
            [sys.executable, "-m", "dspool.cli", "up", *flags],
            stdout=subprocess.PIPE,
            DSPOOL_INIT_TIMEOUT_S=str(START_S),
            **self.nodes.variables,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if said["event"] == "ready":
                self.facts = said
                return
        raise AssertionError(f"the service did not start: {self.machine.logs.read_text()[-4000:]}")

    def dspool(self, *arguments: str, python: Path | str = sys.executable) -> Any:
        """What a verb of the command line of `python` answers on the head, as JSON: its last line."""
        verb = [str(python), "-m", "dspool.cli", *arguments, "--state-dir", str(_STATE), "--json"]
        ran = self.machine.run(verb, DSPOOL_TOKEN=self._token, **self.nodes.variables)
        return json.loads(ran.stdout.splitlines()[-1])

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            Machine.signal(self._process, signal.SIGTERM)
            self._process.wait(START_S)
