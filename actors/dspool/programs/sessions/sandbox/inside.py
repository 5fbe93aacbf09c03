"""Runs inside the sandbox, around the caller's code. Nothing here protects anything: Deno does."""

import ast
import contextlib
import inspect
import io
import json
from typing import Any

_NAME = "<execute_code>"


async def run(source: str, variables: dict[str, Any], longest: int) -> str:
    """What `source` printed and its last value, or what it raised and where; as JSON."""
    stdout = io.StringIO()
    names: dict[str, Any] = {"__name__": "__main__", "variables": variables}
    try:
        tree = ast.parse(source, _NAME)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
            await _evaluate(tree, names, "exec")
            result = None
            if isinstance(last, ast.Expr):
                result = await _evaluate(ast.Expression(last.value), names, "eval")
    except SyntaxError as refused:
        return json.dumps({"refused": refused.lineno})
    except BaseException as raised:
        return json.dumps({"raised": type(raised).__name__, "line": _line(raised)})
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        result = repr(result)[:longest]
    try:
        return json.dumps(
            {"stdout": stdout.getvalue()[:longest], "result": result, "variables": variables},
            allow_nan=False,
        )
    except (TypeError, ValueError, RecursionError):
        return json.dumps({"raised": "TypeError", "line": 0, "why": "variables"})


async def _evaluate(tree: Any, names: dict[str, Any], mode: str) -> Any:
    value = eval(compile(tree, _NAME, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    return await value if inspect.iscoroutine(value) else value


def _line(raised: BaseException) -> int:
    trace, line = raised.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
