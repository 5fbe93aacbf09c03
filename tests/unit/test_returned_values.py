"""All that a program can return is sent, or refused by an error that names the field: never as a defect of ours."""

from __future__ import annotations

import array
import asyncio
import base64
import collections
import datetime
import decimal
import ipaddress
import json
import math
import re
import types
import uuid
from pathlib import Path

import dspy
import msgspec
import numpy
import pydantic
import pytest
import typed_programs as tp

from dspool.config import PoolConfig
from dspool.errors import InvalidRequest, PoolError, ProgramError
from dspool.messages import Deployment, ExecuteProgram, Result, SetVariable, StreamProgram
from dspool.programs.program import to_json
from dspool.programs.sessions.host import SessionHost
from dspool.remote.requests import batch_for, call_for
from dspool.remote.requests import result_of as remote_result
from dspool.testing.host import LoopbackPool
from dspool.wire.frames import encode_command
from dspool.worker.worker import Worker
from dspool_serve.api.common import answer_json, result_of

BIG = 3**200
PNG_URL = "data:image/png;base64,iVBORw0KGgo="
SENT = [
    ("text", "text"),
    (3, 3),
    (True, True),
    (BIG, BIG),
    (-BIG, -BIG),
    ([BIG, {"a": BIG}], [BIG, {"a": BIG}]),
    ((1, (2,)), [1, [2]]),
    ({3: "a", True: "b", None: "c", 1.5: "d", tp.Mood.GOOD: "e", (1, "x"): "f"},
     {"3": "a", "true": "b", "null": "c", "1.5": "d", "good": "e", "1,x": "f"}),
    ({datetime.date(2026, 1, 2): 1}, {"2026-01-02": 1}),
    (numpy.float32(0.5), 0.5),
    (numpy.float64(0.5), 0.5),
    (numpy.int64(3), 3),
    (numpy.bool_(True), True),
    (numpy.str_("a"), "a"),
    (numpy.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (numpy.array(2.5), 2.5),
    (numpy.array([1, "a", None], dtype=object), [1, "a", None]),
    (numpy.datetime64("2026-01-02T03:04:05.000000000"), "2026-01-02T03:04:05.000000000"),
    (tp.Point(1.0), {"x": 1.0, "y": 0.0}),
    (tp.Pair(1, "a"), [1, "a"]),
    (tp.Struct(3), {"type": "st", "size": 3}),
    (decimal.Decimal("1.10"), "1.10"),
    (datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC), "2026-01-02T03:00:00Z"),
    (datetime.date(2026, 1, 2), "2026-01-02"),
    (datetime.time(3, 4), "03:04:00"),
    (datetime.timedelta(seconds=90), "PT1M30S"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Path("/a/b"), "/a/b"),
    (ipaddress.ip_address("10.0.0.1"), "10.0.0.1"),
    (re.compile("a+"), "a+"),
    (pydantic.SecretStr("secret"), "**********"),
    (tp.Mood.BAD, "bad"),
    (b"\xff\0", "/wA="),
    (bytearray(b"a"), "YQ=="),
    (memoryview(b"a"), "YQ=="),
    ({"a"}, ["a"]),
    (frozenset({"a"}), ["a"]),
    (collections.deque([1, 2]), [1, 2]),
    (range(3), [0, 1, 2]),
    (array.array("i", [1, 2]), [1, 2]),
    ({"a": 1}.keys(), ["a"]),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (types.MappingProxyType({"a": 1}), {"a": 1}),
    (tp.Person(name="A", age=1), {"name": "A", "age": 1, "mood": "good", "addresses": [], "nickName": ""}),
    (tp.Names(["a"]), ["a"]),
    (tp.Scored(score=1, blob=b"\xff"), {"score": 1.0, "blob": "/w==", "image": None}),
    (tp.Scored(score=1, image=dspy.Image(PNG_URL)), {"score": 1.0, "blob": "", "image": {"url": PNG_URL}}),
    (dspy.Image(PNG_URL), {"url": PNG_URL}),
    (dspy.Audio(data="YQ==", audio_format="wav"), {"data": "YQ==", "audio_format": "wav"}),
    (dspy.Code(code="x"), "x"),
    (dspy.History(messages=[{"q": 1}]), {"messages": [{"q": 1}]}),
    (dspy.ToolCalls.from_dict_list([{"name": "s", "args": {}}]), {"tool_calls": [{"name": "s", "args": {}}]}),
    (dspy.Example(c=2), {"c": 2}),
    (dspy.Prediction(c=dspy.Prediction(d=1)), {"c": {"d": 1}}),
    (dspy.Prediction.from_completions([{"a": "1"}, {"a": "2"}]).completions, {"a": ["1", "2"]}),
    ("half \ud83d pair", "half � pair"),
    ("\ud83d\ude00", "😀"),
    ({"\udc00": ["\udc00"]}, {"�": ["�"]}),
    (tp.Texts("a"), "a"),
    (tp.deep(90), tp.deep(90)),
]  # fmt: skip

REFUSED = [
    (float("nan"), "value", "nan, which is no number in JSON"),
    ([1.0, math.inf], "value[1]", "inf"),
    ({"a": {"b": -math.inf}}, "value{}{}", "-inf"),
    (numpy.float32("nan"), "value", "nan"),
    (numpy.array([1.0, numpy.nan]), "value[1]", "nan"),
    (decimal.Decimal("NaN"), "value", "NaN"),
    (tp.Scored(score=math.nan), "value{}", "nan"),
    (tp.Point(math.nan), "value.x", "nan"),
    ({math.nan: 1}, "value{}", "nan"),
    (10**5000, "value", "more than 4,200 digits"),
    (object(), "value", "object, which is no JSON value"),
    (complex, "value", "type, which is no JSON value"),
    (len, "value", "which is no JSON value"),
    (tp.counting(), "value", "generator, which is no JSON value"),
    (iter([1]), "value", "list_iterator, which is no JSON value"),
    (tp.cyclic(), "value" + "[0]" * 65, "levels of nesting"),
    (tp.doubled(), "value", "values"),
    (tp.deep(101), "value" + "[0]" * 65, "levels of nesting"),
    ({(1, (2,)): 1}, "value{}", "a key that is a tuple"),
    ({1: "a", "1": "b"}, "value{}", "two keys that are the same"),
    (tp.HalfRead(), "value", "HalfRead, which is no JSON value"),
    (tp.BadMapping(a=1), "value", "BadMapping, which raised KeyboardInterrupt"),
    (tp.BadModel(), "value", "BadModel, which raised SystemExit"),
]  # fmt: skip


@pytest.fixture(scope="module")
def host() -> SessionHost:
    made = SessionHost(PoolConfig(allowed_imports=("typed_programs",), history_limit=5))
    for name in ("Returning", "ReturningInThread"):
        made.deploy(Deployment(name, 1, import_path=f"typed_programs:{name}"))
    return made


@pytest.mark.parametrize(("value", "json"), SENT, ids=lambda part: ascii(part).partition(" at 0x")[0][:40])
async def test_a_value_that_has_a_form_in_json_is_sent(host, value, json):
    tp.returns[0] = dspy.Prediction(value=value)
    outputs = (await host.run_async(ExecuteProgram("Returning", {}), None)).value["outputs"]
    assert outputs == {"value": json}
    assert type(outputs["value"]) is type(json)
    assert host.run_thread(ExecuteProgram("ReturningInThread", {}), None).value["outputs"] == outputs


@pytest.mark.parametrize(("value", "field", "says"), REFUSED, ids=lambda part: type(part).__name__)
async def test_a_value_that_has_none_is_an_error_that_names_the_field(host, value, field, says, monkeypatch):
    # The limit itself takes seconds to reach.
    monkeypatch.setattr("dspool.messages.plain.MAX_VALUES", 50_000)
    tp.returns[0] = dspy.Prediction(value=value)
    for run in (
        lambda: host.run_async(ExecuteProgram("Returning", {}), None),
        lambda: asyncio.to_thread(host.run_thread, ExecuteProgram("ReturningInThread", {}), None),
    ):
        with pytest.raises(ProgramError) as refused:
            await run()
        assert refused.value.details["field"].startswith(field)
        assert says in refused.value.message
        assert "secret" not in str(refused.value.to_wire())


@pytest.mark.parametrize(
    "value",
    [
        "text",
        "half \ud83d",
        3,
        True,
        1.5,
        BIG,
        [1],
        tp.Point(1.0),
        tp.Person(name="A", age=1),
        numpy.zeros(2),
    ],
)
async def test_what_is_neither_a_prediction_nor_a_dict_is_the_output_result(host, value):
    tp.returns[0] = value
    outputs = (await host.run_async(ExecuteProgram("Returning", {}), None)).value["outputs"]
    assert outputs == {"result": to_json(value)}


@pytest.mark.parametrize("value", [None, tp.counting(), object(), math.nan])
async def test_a_program_that_returns_nothing_that_can_be_sent_failed(host, value):
    tp.returns[0] = value
    with pytest.raises(ProgramError):
        await host.run_async(ExecuteProgram("Returning", {}), None)


@pytest.fixture
async def pool():
    config = PoolConfig(name="t", slots_per_worker=4, allowed_imports=("typed_programs",), history_limit=5)
    pool = LoopbackPool(config)
    worker = Worker("w0", 0, config, pool.secret, pool.store, session_host=SessionHost(config))
    for name in ("Returning", "ReturningInThread"):
        await worker.deploy(Deployment(name, 1, import_path=f"typed_programs:{name}"))
    pool.workers["w0"], pool._members["w0"] = worker, await worker.describe()
    pool.publish()
    client = await pool.start_client()
    client.worker = worker
    await client.run(SetVariable("any", 1), session="ada")
    yield client
    await client.close()
    await worker.stop()


@pytest.mark.parametrize("name", ["Returning", "ReturningInThread"])
@pytest.mark.parametrize("session", [None, "ada"])
async def test_integers_of_any_size_and_half_pairs_reach_every_kind_of_caller(pool, name, session):
    tp.returns[0] = {"n": [BIG], "text": "half \ud83d", "\ud83d": 1}
    outputs = {"n": [BIG], "text": "half �", "�": 1}
    result = await pool.run(ExecuteProgram(name, {}), session=session)
    assert result.outputs == outputs
    over_http = msgspec.json.decode(answer_json(result_of(result)).body)
    assert remote_result(ExecuteProgram(name, {}), over_http).outputs == outputs
    assert json.loads(answer_json(result_of(result)).body)["outputs"] == outputs
    *events, last = [event async for event in pool.stream(StreamProgram(name, {}), session=session)]
    assert {event.field: event.value for event in events} == outputs
    assert isinstance(last, Result)
    assert last.outputs == outputs


@pytest.mark.parametrize("name", ["Returning", "ReturningInThread"])
async def test_a_number_that_is_not_finite_ends_its_operation_and_names_its_field_in_a_stream_too(pool, name):
    tp.returns[0] = {"score": math.nan}
    for session in (None, "ada"):
        with pytest.raises(ProgramError) as refused:
            await pool.run(ExecuteProgram(name, {}), session=session)
        assert refused.value.field == "score"
        with pytest.raises(ProgramError, match="'score' holds nan"):
            _ = [event async for event in pool.stream(StreamProgram(name, {}), session=session)]


@pytest.mark.parametrize("value", [math.nan, [math.inf], "\ud83d", {"a": object()}])
async def test_a_variable_that_cannot_be_kept_is_refused_before_it_is_sent(pool, value):
    with pytest.raises(PoolError) as refused:
        await pool.run(SetVariable("x", value), session="ada")
    assert refused.value.outcome == "client_error"
    assert refused.value.details["field"].startswith("value")


# --- arguments by Python ---

ARGUMENTS = {
    "person": tp.Person(name="Ada", age=36, nickName="A"),
    "point": tp.Point(1.0),
    "mood": tp.Mood.BAD,
    "day": datetime.date(2026, 1, 2),
    "image": dspy.Image(PNG_URL),
    "people": [{"a": tp.Person(name="B", age=1)}],
    "numbers": numpy.array([1, 2]),
    "raw": b"\xff",
    "text": "as it is",
}


def over_http(command):
    return call_for("t", command, None, timeout_s=None, idempotent=True, operation_id=None).body["inputs"]


def over_frames(command):
    decoded = msgspec.msgpack.decode(encode_command(command))["inputs"]
    return decoded | {"raw": base64.b64encode(decoded["raw"]).decode()}  # bytes travel as they are


@pytest.mark.parametrize("sent", [over_http, over_frames])
def test_arguments_of_python_travel_as_what_a_caller_over_http_would_send(sent):
    assert sent(ExecuteProgram("p", ARGUMENTS)) == {
        "person": {"name": "Ada", "age": 36, "mood": "good", "addresses": [], "nickName": "A"},
        "point": {"x": 1.0, "y": 0.0},
        "mood": "bad",
        "day": "2026-01-02",
        "image": {"url": PNG_URL},
        "people": [{"a": {"name": "B", "age": 1, "mood": "good", "addresses": [], "nickName": ""}}],
        "numbers": [1, 2],
        "raw": "/w==",
        "text": "as it is",
    }
    assert ARGUMENTS["text"] == "as it is"


@pytest.mark.parametrize("send", [over_http, encode_command])
@pytest.mark.parametrize(
    ("value", "field"),
    [
        (math.nan, "inputs.x"),
        ({"a": [math.inf]}, "inputs.x{}[0]"),
        (object(), "inputs.x"),
        (tp.counting(), "inputs.x"),
        (tp.cyclic(), "inputs"),
        ("\ud83d", "inputs.x"),
        (BIG, "inputs.x"),
        (tp.BadModel(), "inputs.x"),
    ],
)
def test_an_argument_that_has_no_form_in_json_is_refused_alike_by_every_kind_of_pool(send, value, field):
    with pytest.raises(InvalidRequest) as refused:
        send(ExecuteProgram("p", {"ok": 1, "x": value}))
    assert refused.value.details["field"] == field


def test_a_batch_takes_the_same_arguments():
    call = batch_for("t", "p", [{"person": tp.Person(name="Ada", age=36)}], None)
    assert call.body["inputs"][0]["person"]["name"] == "Ada"
    with pytest.raises(InvalidRequest):
        batch_for("t", "p", [{"x": math.nan}], None)


async def test_a_typed_argument_reaches_a_program_as_what_it_was(pool):
    tp.returns[0] = None
    for name in ("person", "image", "point", "mood", "raw"):
        worker = pool.worker
        await worker.deploy(Deployment(name, 1, import_path=f"typed_programs:Takes_{name}"))
        result = await pool.run(ExecuteProgram(name, {"value": ARGUMENTS[name]}))
        assert result.outputs["value"] == repr(ARGUMENTS[name])
