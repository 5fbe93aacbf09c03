"""Each limit of `dspool.messages.limits`: as much is taken, one more is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pydantic
import pytest

from dspool.config import PoolConfig
from dspool.errors import CallerError, NotAllowed
from dspool.messages import ConfigureLM, CreateProgram, Deployment, ExecuteProgram, SetVariable, limits
from dspool.programs.input_types import InputTypes
from dspool.programs.program import Definition, load_program
from dspool.programs.schemas import SchemaField
from dspool.programs.sessions.host import SessionHost
from dspool.programs.sessions.session import Session
from dspool_serve.api.schema import ExecuteRequest
from dspool_serve.http.forms import form_inputs
from dspool_serve.http.requests import Request, decode
from dspool_serve.http.routing import Route, Router
from tests.security.hostile_inputs import asked
from tests.security.hostile_programs import demo, fields, predictor, signature

CONFIG = PoolConfig()
SIMPLE: dict[str, Any] = {"signature": "question -> answer"}


@pytest.fixture(scope="module")
def host() -> SessionHost:
    host = SessionHost(CONFIG)
    host.deploy(Deployment("qa", 1, spec={"signature": "question: Any -> answer"}))
    return host


def load(signature: Any = "question -> answer", state: Any = None, **more: Any) -> None:
    load_program(Definition(spec={"signature": signature, **more}, state=state), CONFIG)


def literals(*counts: int) -> Any:
    kinds = [{"type": "literal", "values": [*range(count)]} for count in counts]
    return {"inputs": ["q"], "outputs": [{"name": f"o{n}", "type": kind} for n, kind in enumerate(kinds)]}


def described(characters: int) -> Any:
    return {"inputs": [{"name": "q", "desc": "d" * characters}], "outputs": ["a"]}


def spec_of(size: int) -> dict[str, Any]:
    """A spec that takes exactly `size` bytes."""
    outputs = fields(16, desc="d" * 8_000)
    spec = {"signature": {"inputs": ["q"], "outputs": outputs}}
    outputs[0]["desc"] += "d" * (size - len(msgspec.json.encode(spec)) - 2_000)
    outputs[1]["desc"] += "d" * (size - len(msgspec.json.encode(spec)))
    assert len(msgspec.json.encode(spec)) == size
    return spec


def count(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return len(inner) + sum(map(count, inner))


def request(path: str = "/", query: str = "") -> Request:
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": []}
    return Request(scope, None)  # type: ignore[arg-type]


PART = b'--x\r\ncontent-disposition: form-data; name="q"\r\n\r\nv\r\n'


def form() -> Request:
    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, None)  # type: ignore[arg-type]


class Chain(pydantic.BaseModel):
    inner: Chain | Link | None = None


class Link(pydantic.BaseModel):
    inner: Chain | Link | None = None


Chain.model_rebuild()


def named(length: int) -> None:
    Router([Route("GET", "/{name}", None, "")]).match(request("/" + "n" * length))  # type: ignore[arg-type]


def many(command: Callable[[int], Any]) -> Callable[[int], None]:
    def check(number: int) -> None:
        host = SessionHost(CONFIG)
        session = Session(host, "s")
        for one in range(number):
            host.run_inline(command(one), session)

    return check


def configure(length: int) -> None:
    host = SessionHost(CONFIG)
    host.run_inline(ConfigureLM("offline", {"stop": ["x" * length]}), Session(host, "s"))


BODY = msgspec.json.Decoder(ExecuteRequest)
CASES: dict[str, Callable[[int], Any]] = {
    "MAX_BODY_DEPTH": lambda n: decode(BODY, asked(b"[" * (n - 2) + b"]" * (n - 2))),
    "MAX_LONG_NUMBERS": lambda n: decode(
        BODY, b'{"inputs":{"p":"%b","q":[%b]}}' % (b" " * 20_000, b",".join([b"1e300"] * n))
    ),
    "MAX_BODY_VALUES": lambda n: decode(BODY, b'{"inputs":{"q":[' + b",".join([b"1"] * (n - 2)) + b"]}}"),
    "MAX_FORM_PARTS": lambda n: form_inputs(form(), b"".join([PART] * n) + b"--x--"),
    "MAX_TRIES": lambda n: InputTypes([SchemaField("q", list[Chain | Link])]).build({"q": [{}] * (n - 1)}),
    "MAX_PATH_NAME": named,
    "MAX_QUERY_FIELDS": lambda n: request(query="&".join(["a=1"] * n)).query(frozenset({"a"})),
    "MAX_SPEC_BYTES": lambda n: load_program(Definition(spec=spec_of(n)), CONFIG),
    "MAX_FIELDS": lambda n: load({"inputs": fields(n), "outputs": ["a"]}),
    "MAX_TYPES": lambda n: load(
        {"inputs": fields(2 + n % 2), "outputs": fields(n // 2 - 1, "list[int]", "o")}
    ),
    "MAX_DEPTH": lambda n: load(signature("list[" * n + "int" + "]" * n)),
    "MAX_LITERALS": lambda n: load(literals(n)),
    "MAX_ALL_LITERALS": lambda n: load(literals(*[100] * (n // 100), *[n % 100] * (n % 100 > 0))),
    "MAX_LITERAL_CHARACTERS": lambda n: load(signature({"type": "literal", "values": ["v" * n]})),
    "MAX_INSTRUCTIONS": lambda n: load({"inputs": ["q"], "outputs": ["a"], "instructions": "i" * n}),
    "MAX_DESCRIPTION": lambda n: load(described(n)),
    "MAX_TYPE_TEXT": lambda n: load(signature(f"Literal['{'v' * (n - len('Literal[]') - 2)}']")),
    "MAX_FIELD_NAME": lambda n: load({"inputs": ["q" * n], "outputs": ["a"]}),
    "MAX_IMPORT_PATH": lambda n: load(module="BestOfN", settings={"reward": "a:" + "b" * (n - 2)}),
    "MAX_TOOLS": lambda n: load(module="ReAct", settings={"tools": ["a:b"] * n}),
    "MAX_STATE_VALUES": lambda n: load(state=predictor(train=[1] * (n - count(predictor())))),
    "MAX_DEMONSTRATIONS": lambda n: load(state=predictor(demos=[demo()] * n)),
    "MAX_NAME": lambda n: many(lambda one: SetVariable("v" * n, 1))(1),
    "MAX_PROGRAMS": many(lambda one: CreateProgram(f"p{one}", spec=SIMPLE)),
    "MAX_VARIABLES": many(lambda one: SetVariable(f"v{one}", 1)),
    "MAX_STOP_CHARACTERS": configure,
}
ELSEWHERE = {
    "MAX_KEPT_TYPES",  # test_hostile_programs.py: what no program uses any more leaves little behind
    "LARGE_CHARACTERS",  # below
    "LARGE_VALUES",
}


def test_every_limit_has_a_test():
    assert {name for name in vars(limits) if name.isupper()} == CASES.keys() | ELSEWHERE


@pytest.mark.parametrize("name", CASES)
def test_as_much_is_taken_and_one_more_is_refused(name: str):
    limit = getattr(limits, name)
    # An import path may be read, and name what the configuration does not list.
    with suppress(NotAllowed):
        CASES[name](limit)
    with pytest.raises(CallerError) as refused:
        CASES[name](limit + 1)
    assert not isinstance(refused.value, NotAllowed)
    assert len(refused.value.message) < 1_000


def test_large_inputs_do_not_run_on_the_event_loop_of_a_worker(host: SessionHost):
    def plan(value: Any) -> str:
        return host.plan(ExecuteProgram("qa", {"question": value}), None)

    most = limits.LARGE_CHARACTERS
    assert plan("x" * most) == "inline"
    assert plan("x" * (most + 1)) == "async"
    assert plan([1] * (limits.LARGE_VALUES - 1)) == "inline"
    assert plan([1] * limits.LARGE_VALUES) == "async"
