"""Python in a sandbox, for admins, where the configuration offers it."""

from __future__ import annotations

import msgspec

from dspool.errors import NotAllowed
from dspool.messages import ExecuteSandboxed
from dspool_serve.api.common import RUN, answer_json, body_of, deadline, pool_of, run
from dspool_serve.api.schema import CodeRequest, CodeResponse, Timings
from dspool_serve.api.sessions import SESSION
from dspool_serve.context import Context
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

_code_body = msgspec.json.Decoder(CodeRequest)


async def execute_code(context: Context, request: Request) -> Response:
    pool_of(context, request)
    if not context.settings.execute_code:
        raise NotAllowed("execute_code is off: the configuration needs service.execute_code")
    asked = await body_of(context, request, _code_body)
    answer = await run(
        context,
        request,
        ExecuteSandboxed(asked.code),
        session=request.params["session"],
        timeout_s=deadline(context, asked.timeout_s),
    )
    value = answer.value
    timings = Timings(answer.wait_s, answer.run_s)
    return answer_json(
        CodeResponse(value["stdout"], value["result"], answer.operation_id, answer.worker, timings)
    )


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        SESSION + "/execute_code",
        execute_code,
        "Run Python in a sandbox of its own, without files or network; creates the session",
        CodeResponse,
        CodeRequest,
        problems=(*RUN, "not_allowed", "sandbox_unavailable", "too_many_sessions"),
    ),
)
