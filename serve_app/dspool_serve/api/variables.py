"""The variables of a session."""

from __future__ import annotations

from typing import Any

import msgspec

from dspool.messages import DeleteVariable, GetVariable, ListVariables, SetVariable
from dspool_serve.api.common import CHANGE, LOOK, PAGE, answer_json, body_of, cut, page_of, run
from dspool_serve.api.schema import Variable, VariableList, VariableRequest
from dspool_serve.api.sessions import SESSION
from dspool_serve.context import Context
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

_variable_body = msgspec.json.Decoder(VariableRequest)


async def list_variables(context: Context, request: Request) -> Response:
    limit, cursor, _ = page_of(request)
    names: list[str] = (await _run(context, request, ListVariables()))["variables"]
    return answer_json(VariableList(*cut(names, str, limit, cursor)))


async def get_variable(context: Context, request: Request) -> Response:
    name = request.params["variable"]
    return answer_json(Variable(name, (await _run(context, request, GetVariable(name)))["value"]))


async def put_variable(context: Context, request: Request) -> Response:
    name = request.params["variable"]
    asked = await body_of(context, request, _variable_body)
    await _run(context, request, SetVariable(name, asked.value))
    return answer_json(Variable(name, asked.value))


async def delete_variable(context: Context, request: Request) -> Response:
    await _run(context, request, DeleteVariable(request.params["variable"]))
    return Response(204, b"")


async def _run(context: Context, request: Request, command: Any) -> Any:
    return (await run(context, request, command, session=request.params["session"])).value


_VARIABLE = SESSION + "/variables/{variable}"
_KNOWN = ("unknown_name", "unknown_session", "invalid_request", *LOOK)

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        SESSION + "/variables",
        list_variables,
        "The names of a session's variables, a page at a time",
        VariableList,
        problems=("unknown_session", "invalid_request", *LOOK),
        query=PAGE,
        role="caller",
    ),
    Route(
        "GET",
        _VARIABLE,
        get_variable,
        "A variable of a session",
        Variable,
        problems=_KNOWN,
        role="caller",
    ),
    Route(
        "PUT",
        _VARIABLE,
        put_variable,
        "Set a variable of a session; creates the session",
        Variable,
        VariableRequest,
        problems=(*CHANGE, "conflict", "too_many_sessions", "quota_exceeded", *LOOK),
        role="caller",
    ),
    Route(
        "DELETE",
        _VARIABLE,
        delete_variable,
        "Delete a variable of a session",
        status=204,
        problems=_KNOWN,
        role="caller",
    ),
)
