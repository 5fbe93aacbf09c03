"""The service that several files look at: what they share is started once, and they run one after the other."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspool.testing.lm_server import LMServer
from dspool.tokens import issue
from tests.serve.test_service import Up

PEOPLE = {"ada": "caller", "bob": "caller", "root": "admin", "eve": "reader"}
MODEL_KEY = "sk-Zanzibar4471-of-the-model"
HARNESS = Path(__file__).parents[1] / "integration"


@pytest.fixture(scope="session")
def guarded_lm() -> Iterator[LMServer]:
    """The model of `guarded`, which asks for MODEL_KEY."""
    with LMServer(api_key=MODEL_KEY) as server:
        yield server


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, guarded_lm: LMServer) -> Iterator[Up]:
    """A service with TLS, tokens of PEOPLE and two ingress processes; it traces and logs all that it may."""
    home = tmp_path_factory.mktemp("guarded")
    cert, key, tokens = home / "cert.pem", home / "key.pem", home / "tokens.yaml"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    key.chmod(0o600)
    texts = {name: issue(tokens, name, role)[0] for name, role in PEOPLE.items()}
    asking = {"signature": "context, question -> answer"}
    config = {
        "pool_size": 2,
        "max_pool_size": 3,
        "telemetry": {"sampling": 1.0, "max_traces_per_s": None, "log_level": "debug"},
        "metrics_flush_interval_s": 0.1,
        "allowed_imports": ["telling"],
        "lm_profiles": {
            "test": {"model": "openai/test", "endpoint": guarded_lm.url, "api_key_env": "GUARDED_MODEL_KEY"},
            "offline": {"model": "offline", "engine": "offline"},
        },
        "default_lm": "offline",
        "programs": {
            "qa": {"spec": asking},
            "ask": {"spec": {**asking, "lm": "test"}},
            "generated": {"spec": asking},
            "failing": {"import_path": "telling:Failing"},
            "failing_later": {"import_path": "telling:FailingLater"},
            "typed": {"import_path": "telling:Typed"},
        },
        "service": {
            "tokens_file": str(tokens),
            "tls_cert": str(cert),
            "tls_key": str(key),
            "replicas": 2,
            "heartbeat_s": 0.2,
        },
    }
    (home / "pool.yaml").write_text(json.dumps(config))
    path = os.pathsep.join(filter(None, [str(HARNESS), os.environ.get("PYTHONPATH")]))
    running = Up(
        home / "state",
        "--config",
        str(home / "pool.yaml"),
        GUARDED_MODEL_KEY=MODEL_KEY,
        PYTHONPATH=path,
    )
    running.cert, running.tokens = cert, texts
    running.trust = ssl.create_default_context(cafile=str(cert))
    yield running
    running.end()
