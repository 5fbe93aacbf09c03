"""The OpenAPI document says what the routes do."""

from __future__ import annotations

import json
import re

import jsonschema
import msgspec
import openapi_spec_validator
import pytest
from http_doubles import FakePool, client_of

from dspool_console.dashboard import DASHBOARD
from dspool_serve.api import ROUTES
from dspool_serve.api.examples import EXAMPLES
from dspool_serve.api.openapi import described, document

DESCRIBED = described((*ROUTES, *DASHBOARD))
DOCUMENT = document(DESCRIBED, version="1.2.3")
OPERATIONS = [(path, method, op) for path, item in DOCUMENT["paths"].items() for method, op in item.items()]


def test_the_document_is_valid_openapi():
    openapi_spec_validator.validate(json.loads(json.dumps(DOCUMENT)))


async def test_the_document_is_served():
    async with client_of(FakePool()) as http:
        served = (await http.get("/openapi.json")).json()
    assert served["openapi"] == "3.1.0"
    assert set(served["paths"]) == {route.path for route in DESCRIBED}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_each_example_is_what_it_shows(kind):
    msgspec.convert(EXAMPLES[kind], kind)
    schemas, components = msgspec.json.schema_components([kind])
    jsonschema.validate(EXAMPLES[kind], {**schemas[0], "$defs": components})


def test_every_reference_leads_somewhere_and_every_schema_is_one():
    for name in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(DOCUMENT)):
        assert name in DOCUMENT["components"]["schemas"]
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("path", "method", "op"), OPERATIONS)
def test_each_operation_names_its_parameters_answers_and_problems(path, method, op):
    named = {p["name"] for p in op.get("parameters", []) if p["in"] == "path"}
    assert named == set(re.findall(r"\{(\w+)\}", path))
    assert any(status.startswith("2") for status in op["responses"])
    assert "500" in op["responses"]
    for status, answer in op["responses"].items():
        if not status.startswith("2"):
            assert list(answer["content"]) == ["application/problem+json"]
    assert "requestBody" not in op or method in ("post", "put")


def test_operation_ids_are_unique():
    ids = [op["operationId"] for _, _, op in OPERATIONS]
    assert len(ids) == len(set(ids))
