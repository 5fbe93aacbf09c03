"""The OpenAPI 3.1 document, made from the route table and the structs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from dspool_serve.errors import kind_of
from dspool_serve.router import MAX_NAME, Route
from dspool_serve.schema import EXAMPLES, Problem

_REF = "#/components/schemas/{name}"
_ALWAYS = ("not_found", "method_not_allowed", "internal_error")


def document(routes: Iterable[Route], *, version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `routes`, as plain JSON values."""
    routes = tuple(routes)
    types: list[Any] = [Problem]
    for route in routes:
        for kind in (*_parts(route.takes), *_parts(route.answer)):
            if kind not in types:
                types.append(kind)
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(map(id, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dspool",
            "version": version,
            "summary": "Stateful DSPy programs served from pools of warm, supervised Ray actors",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _parts(kind: Any) -> tuple[Any, ...]:
    """The struct types of `kind`: itself, or the members of a union. `Any` and None have no schema."""
    if kind is None or kind is Any:
        return ()
    return get_args(kind) or (kind,)


def _operation(route: Route, schema_of: dict[int, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "responses": _responses(route, schema_of),
    }
    parameters: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
        }
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.takes is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": _media(route.takes, schema_of)},
        }
    return operation


def _responses(route: Route, schema_of: dict[int, Any]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": route.summary}
    if route.answer is Any:
        success["content"] = {"application/json": {"schema": {"type": "object"}}}
    elif route.answer is not None:
        success["content"] = {"application/json": _media(route.answer, schema_of)}
    responses = {str(route.status): success}
    if "{pool}" in route.path:
        always: tuple[str, ...] = ("malformed_request", "unknown_pool", *_ALWAYS)
    else:
        always = _ALWAYS
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*route.problems, *always)):
        by_status.setdefault(kind_of(code).status, []).append(code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {
            "description": "; ".join(f"{kind_of(code).title} (`{code}`)" for code in codes),
            "content": {"application/problem+json": {"schema": schema_of[id(Problem)]}},
        }
    return responses


def _media(kind: Any, schema_of: dict[int, Any]) -> dict[str, Any]:
    parts = _parts(kind)
    schemas = [schema_of[id(part)] for part in parts]
    media: dict[str, Any] = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    media["examples"] = {part.__name__: {"value": EXAMPLES[part]} for part in parts if part in EXAMPLES}
    return media
