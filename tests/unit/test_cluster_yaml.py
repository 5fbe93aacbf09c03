"""The example for Ray's cluster launcher is one that the installed Ray takes, and starts a closed cluster."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_it_fits_the_schema_of_the_installed_ray(cluster):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    # Ray's launcher takes `min_workers` out of a local cluster before it looks at the schema.
    cluster.pop("min_workers")
    jsonschema.validate(cluster, schema)


def test_ray_accepts_it_as_its_launcher_prepares_it(cluster):
    prepared = prepare_config(cluster)
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["min_workers"] == len(cluster["provider"]["worker_ips"])


def test_ray_refuses_it_with_an_unknown_field(cluster):
    prepared = prepare_config(cluster)
    with pytest.raises(jsonschema.ValidationError, match="start_commands"):
        validate_config({**prepared, "start_commands": []})


@pytest.mark.parametrize("role", ["head_start_ray_commands", "worker_start_ray_commands"])
@pytest.mark.parametrize(
    "setting",
    [
        "RAY_AUTH_MODE=token",
        "RAY_SERVE_ENABLE_HA_PROXY=1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED=1",
        "RAY_worker_niceness=0",
        "MALLOC_ARENA_MAX=2",
        "unset PYTHONDONTWRITEBYTECODE",
    ],
)
def test_every_node_starts_closed_and_with_the_fast_ingress(cluster, role, setting):
    (start,) = [command for command in cluster[role] if "ray start" in command]
    assert setting in start.partition("ray start")[0]


def test_its_head_finds_a_lost_node_as_soon_as_the_promises_say(cluster):
    """docs/promises.md: so long until Ray starts elsewhere what was on it."""
    (start,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    said = dict(re.findall(r"RAY_health_check_(\w+)=(\d+)", start))
    period_s, timeout_s = int(said["period_ms"]) / 1000, int(said["timeout_ms"]) / 1000
    failures = int(said["failure_threshold"])
    assert period_s * failures + timeout_s * failures <= 4.5


def test_the_head_starts_all_of_its_machines_with_the_autoscaler_that_does(cluster):
    (start,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert "RAY_enable_autoscaler_v2=0" in start.partition("ray start")[0]


def test_the_service_outlives_the_ssh_session_that_starts_it():
    steps = (ROOT / "cluster.yaml").read_text().partition("cluster_name:")[0]
    assert "--detach" in next(line for line in steps.splitlines() if "dspool up --" in line)


def test_it_holds_no_secret_and_no_address_of_a_real_network(cluster):
    addresses = [cluster["provider"]["head_ip"], *cluster["provider"]["worker_ips"]]
    assert all(address.startswith("192.0.2.") for address in addresses)
    assert list(cluster["file_mounts"]) == ["~/dspool", "~/.ray/auth_token"]


def test_it_says_to_give_the_store_a_database_that_all_nodes_reach():
    steps = (ROOT / "cluster.yaml").read_text().partition("cluster_name:")[0]
    assert "store_url: postgresql://" in steps
    assert "--config" in next(line for line in steps.splitlines() if "dspool up --" in line)
