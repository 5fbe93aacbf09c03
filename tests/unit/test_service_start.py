"""What `dspool up` tells Ray and Serve before they start."""

from __future__ import annotations

import pytest

from dspool_serve.ingress.starting import start_limits


def test_serve_waits_for_its_proxy_as_long_as_the_pool_waits_for_workers():
    limits = start_limits(90.5, {})
    assert limits == {
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "91",
        "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "91",
        "RAY_worker_register_timeout_seconds": "91",
        "RAY_gcs_server_port_wait_time_s": "91",
    }


@pytest.mark.parametrize("name", start_limits(1.0, {}))
def test_what_the_environment_says_of_waiting_holds(name):
    assert name not in start_limits(90.0, {name: "7"})
