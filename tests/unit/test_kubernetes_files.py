"""deploy/kubernetes: what it builds is closed, fits together and is what Ray, dspool and KubeRay take.

The schemas of others are not part of this repository: KUBERNETES_SCHEMAS names a directory with KubeRay's
`config/crd/bases` and Kubernetes' `api/openapi-spec/v3`; without it what needs them is skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from dspool.config import load_config
from dspool_serve.ingress.serve_application import ServeArguments

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("rayservice", "raycluster")
NAME = "app.kubernetes.io/name"
SCHEMAS = os.environ.get("KUBERNETES_SCHEMAS")


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def built(directory: Path) -> list[dict[str, Any]]:
    """What `kustomize build` makes of it, as far as it is used here: resources, labels and ConfigMaps of files."""
    said = yaml.safe_load((directory / "kustomization.yaml").read_text())
    assert set(said) <= {"apiVersion", "kind", "labels", "configMapGenerator", "resources"}
    found: list[dict[str, Any]] = []
    for name in said["resources"]:
        place = directory / name
        found += built(place) if place.is_dir() else documents(place)
    for maker in said.get("configMapGenerator", ()):
        data = {file: (directory / file).read_text() for file in maker["files"]}
        found.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": maker["name"]}, "data": data}
        )
    for labels in said.get("labels", ()):
        for one in found:
            one["metadata"].setdefault("labels", {}).update(labels["pairs"])
    return found


@pytest.fixture(params=OVERLAYS)
def resources(request) -> list[dict[str, Any]]:
    return built(KUBERNETES / "overlays" / request.param)


def of_kind(resources: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [one for one in resources if one["kind"] == kind]
    return found


def cluster_of(resources: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = {one["kind"]: one for one in resources}
    return (
        kinds["RayService"]["spec"]["rayClusterConfig"]
        if "RayService" in kinds
        else kinds["RayCluster"]["spec"]
    )


def templates(resources: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    cluster = cluster_of(resources)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {one["groupName"]: one["template"] for one in cluster["workerGroupSpecs"]}
    return found | {
        one["metadata"]["name"]: one["spec"]["template"] for one in resources if one["kind"] == "Job"
    }


def test_an_overlay_has_what_a_service_needs(resources):
    kinds = {one["kind"] for one in resources}
    assert kinds >= {"ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount", "ServiceMonitor"}
    names = [(one["kind"], one["metadata"]["name"]) for one in resources]
    assert len(names) == len(set(names))


def test_the_network_policy_holds_for_every_pod_and_leaves_only_the_service_open(resources):
    policy = of_kind(resources, "NetworkPolicy")["spec"]
    for template in templates(resources).values():
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    to_all = [port["port"] for rule in policy["ingress"] if "from" not in rule for port in rule["ports"]]
    assert to_all == [8000]
    whole = [rule["from"] for rule in policy["ingress"] if "ports" not in rule]
    assert whole == [[{"podSelector": policy["podSelector"]}]]


def test_the_budget_and_the_monitor_select_what_there_is(resources):
    budget = of_kind(resources, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    for template in templates(resources).values():
        assert budget["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    monitor = of_kind(resources, "ServiceMonitor")["spec"]
    kinds = {one["kind"]: one for one in resources}
    service = kinds["RayService"]["spec"]["serveService"] if "RayService" in kinds else kinds["Service"]
    labels = {NAME: "dspool", **service["metadata"]["labels"]}
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert {one["port"] for one in monitor["endpoints"]} <= {
        port["name"] for port in service["spec"]["ports"]
    }


def test_every_pod_is_bounded_probed_and_without_rights(resources):
    for name, template in templates(resources).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            if name != "dspool-deploy":
                assert {"livenessProbe", "readinessProbe"} <= set(container)
                mounted = {one["name"] for one in container["volumeMounts"]}
                assert mounted == {one["name"] for one in spec["volumes"]}


def test_every_secret_and_map_that_is_named_is_there_and_none_holds_a_value(resources):
    secrets = {
        one["metadata"]["name"]: one["stringData"] for one in documents(KUBERNETES / "secrets.example.yaml")
    }
    maps = {one["metadata"]["name"] for one in resources if one["kind"] == "ConfigMap"}
    assert all(value.startswith("CHANGE") for data in secrets.values() for value in data.values())
    named, keyed = set(), set()

    def walk(value: Any) -> None:
        if isinstance(value, list):
            for one in value:
                walk(one)
        if isinstance(value, dict):
            if "secretKeyRef" in value:
                keyed.add((value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]))
            if "secretName" in value:
                named.add(value["secretName"])
            if "credentials" in value:
                keyed.add((value["credentials"]["name"], value["credentials"]["key"]))
            if "configMap" in value:
                assert value["configMap"]["name"] in maps
            for one in value.values():
                walk(one)

    walk(resources)
    assert named <= secrets.keys()
    assert all(key in secrets[name] for name, key in keyed)
    assert {"auth_token"} <= secrets["dspool-ray"].keys()


def test_the_cluster_asks_for_a_token_and_survives_its_head(resources):
    cluster = cluster_of(resources)
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"]
    for template in list(templates(resources).values())[:2]:
        variables = {one["name"]: one.get("value") for one in template["spec"]["containers"][0]["env"]}
        assert variables["RAY_worker_niceness"] == "0"
        assert variables["MALLOC_ARENA_MAX"] == "2"
        assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == variables["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"


def test_what_serve_deploys_is_what_the_installed_ray_and_the_builder_take(resources):
    kinds = {one["kind"]: one for one in resources}
    if "RayService" in kinds:
        text = kinds["RayService"]["spec"]["serveConfigV2"]
    else:
        [text] = [one["data"]["serve.yaml"] for one in resources if "serve.yaml" in one.get("data", ())]
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    [application] = config.applications
    assert application.import_path == "dspool_serve:builder"
    assert ServeArguments(**application.args).config == Path("/etc/dspool/pool.yaml")
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)


def test_the_configuration_is_one_that_dspool_takes():
    config = load_config(file=KUBERNETES / "base" / "pool.yaml", environ={}).config
    assert (config.service.host, config.service.port, config.spares) == ("0.0.0.0", 8000, 1)


# --- against the schemas of others -----------------------------------------------------------------


def strict(schema: Any) -> Any:
    """The schema, which refuses fields that it does not know, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    found = {key: strict(value) for key, value in schema.items() if key != "default"}
    if isinstance(schema.get("properties"), dict):
        found["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    return found


def custom_schemas(directory: Path) -> dict[tuple[str, str], Any]:
    found = {}
    for path in directory.rglob("*.yaml"):
        for one in documents(path):
            if one.get("kind") == "CustomResourceDefinition":
                for version in one["spec"]["versions"]:
                    schema = strict(version["schema"]["openAPIV3Schema"])
                    # Kubernetes checks the metadata of every kind by itself.
                    schema["properties"]["metadata"] = {"type": "object"}
                    key = f"{one['spec']['group']}/{version['name']}", one["spec"]["names"]["kind"]
                    found[key] = schema
    return found


def kubernetes_schemas(directory: Path) -> dict[tuple[str, str], Any]:
    found = {}
    for path in directory.rglob("*_openapi.json"):
        document = json.loads(path.read_text())
        for schema in document["components"]["schemas"].values():
            for kind in schema.get("x-kubernetes-group-version-kind", ()):
                version = f"{kind['group']}/{kind['version']}".removeprefix("/")
                found[version, kind["kind"]] = {
                    **strict(schema),
                    "components": strict(document["components"]),
                }
    return found


@pytest.mark.skipif(SCHEMAS is None, reason="KUBERNETES_SCHEMAS names no directory with public schemas")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_fits_the_schema_of_its_kind(overlay):
    schemas = custom_schemas(Path(SCHEMAS)) | kubernetes_schemas(Path(SCHEMAS))
    checked = []
    for one in built(KUBERNETES / "overlays" / overlay):
        schema = schemas.get((one["apiVersion"], one["kind"]))
        if schema is not None:
            jsonschema.validate(one, schema)
            checked.append(one["kind"])
    print(f"{overlay}: fits the schema: {', '.join(checked)}")
    assert {"RayService", "RayCluster"} & set(checked)
