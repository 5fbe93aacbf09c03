"""The OpenAPI 3.1 document, made from the route table and the structs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from dspool.core.lifecycle.warmup import WarmupReport
from dspool.messages.limits import MAX_PATH_NAME
from dspool.supervisor.canary import Rollout
from dspool.supervisor.warmup import WarmProgress
from dspool_serve.access.csrf import SAFE
from dspool_serve.api.events import EventRow
from dspool_serve.api.examples import EXAMPLES
from dspool_serve.api.idempotency import MAX_KEY
from dspool_serve.api.schema import ExecuteResponse, FieldEvent, Problem, StatusEvent, TokenEvent
from dspool_serve.api.version_schema import Deployed
from dspool_serve.http.problems import kind_of
from dspool_serve.http.routing import Route

STREAMS: dict[str, dict[str, Any]] = {
    "program": {
        "token": TokenEvent,
        "field": FieldEvent,
        "status": StatusEvent,
        "final": ExecuteResponse,
        "error": Problem,
    },
    "deploy": {"status": Rollout, "final": Deployed, "error": Problem},
    "warm": {"status": WarmProgress, "final": WarmupReport, "error": Problem},
    "events": {"status": StatusEvent, "event": EventRow, "error": Problem},
}
"""What each kind of stream sends: the name of an event, and the type of its data."""

ON_REQUEST = frozenset({"deploy"})
"""Streams for clients that accept only events; others get the answer at the end."""

_REF = "#/components/schemas/{name}"
_KEYED = (
    "quota_exceeded",
    "invalid_request",
    "idempotency_key_reused",
    "idempotency_in_progress",
    "idempotency_outcome_unknown",
    "store_failed",
)
_ALWAYS = ("not_found", "method_not_allowed", "internal_error")


def described(routes: Iterable[Route]) -> tuple[Route, ...]:
    """Those of `routes` that are the API: what the dashboard's page and Ray's panels are made of is not."""
    return tuple(
        route
        for route in routes
        if not (route.path == "/" or route.path.startswith(("/dashboard", "/grafana")))
    )


def document(routes: Iterable[Route], *, version: str, root_path: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 document of `routes`, as plain JSON values."""
    routes = tuple(routes)
    types: list[Any] = [Problem]
    for route in routes:
        for kind in (*_parts(route.takes), *_parts(route.answer), *STREAMS.get(route.stream, {}).values()):
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
        # Relative to where this document is, which is right below any prefix.
        "servers": [{"url": root_path or "."}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An access token (`dspool token new`), where the service has tokens.",
                }
            },
        },
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
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_PATH_NAME},
        }
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in route.query]
    if route.method == "POST":
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same key and body are done once and get the same answer, for a day unless "
                "configured otherwise.",
                "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[ -~]+$"},
            }
        )
    if (need := route.role) is not None:
        # Or none at all: without tokens the service answers everybody on its own machine.
        operation["security"] = [{"token": []}, {}]
        operation["x-dspool-role"] = need
    if need in ("caller", "admin"):
        parameters.append(
            {
                "name": "x-dspool-priority",
                "in": "header",
                "description": "`interactive` or `batch`, which lets interactive work go first. It has no "
                "effect while the service has no tokens.",
                "schema": {"type": "string"},
            }
        )
    if parameters:
        operation["parameters"] = parameters
    if route.takes is not None:
        operation["requestBody"] = {
            "required": not route.body_optional,
            "content": {"application/json": _media(route.takes, schema_of)},
        }
        if route.takes_form:
            operation["requestBody"]["content"]["multipart/form-data"] = {
                "schema": {
                    "type": "object",
                    "description": "a part for each input: texts, files, or JSON with its Content-Type",
                    "additionalProperties": True,
                }
            }
    return operation


def _responses(route: Route, schema_of: dict[int, Any]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": route.summary}
    streamed = {"text/event-stream": _stream(route, schema_of)} if route.stream else None
    if streamed is not None and route.stream not in ON_REQUEST:
        success["content"] = streamed
    elif route.media != "application/json":
        success["content"] = {route.media: {"schema": {"type": "string"}}}
    elif route.answer is Any:
        success["content"] = {"application/json": {"schema": {"type": "object"}}}
    elif route.answer is not None:
        success["content"] = {"application/json": _media(route.answer, schema_of)}
    responses = {str(route.status): success}
    if streamed is not None and route.stream in ON_REQUEST:
        shown = "The same with its progress, for clients that accept `text/event-stream` and nothing else"
        responses["200"] = {"description": shown, "content": streamed}
    if "{pool}" in route.path:
        always: tuple[str, ...] = ("malformed_request", "unknown_pool", "not_allowed", *_ALWAYS)
    else:
        always = _ALWAYS
    by_status: dict[int, list[str]] = {}
    if route.method == "POST":
        always += _KEYED
    if route.takes is not None:
        always += ("request_too_slow", "unsupported_media_type")
    if (need := route.role) is not None:
        always += ("unauthenticated", "not_allowed", *(() if route.method in SAFE else ("csrf",)))
    if route.stream:
        always += ("rate_limited",)
    if need in ("caller", "admin"):
        always += ("invalid_request", "queue_full", "rate_limited", "deadline_exceeded")
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


def _stream(route: Route, schema_of: dict[int, Any]) -> dict[str, Any]:
    """OpenAPI 3.1 has no words for events: they are told in an extension, and shown in the example."""
    kinds = STREAMS[route.stream]
    shown = "".join(
        f"event: {name}\ndata: {json.dumps(EXAMPLES[kind])}\n\n"
        for name, kind in kinds.items()
        if kind in EXAMPLES
    )
    media: dict[str, Any] = {
        "schema": {"type": "string", "description": "server-sent events; `x-events` has each one's data"},
        "x-events": {name: schema_of[id(kind)] for name, kind in kinds.items()},
    }
    return media | ({"example": shown} if shown else {})
