"""Inputs are made into the types that a program declares, or refused with the field and the place in it."""

from __future__ import annotations

import base64
import datetime
from typing import Any

import dspy
import jsonschema
import numpy
import pytest
import typed_programs

from dspool.config import PoolConfig
from dspool.errors import InvalidRequest, PoolError
from dspool.messages import Deployment, ExecuteProgram, StreamProgram
from dspool.programs.outputs import to_json
from dspool.programs.program import Definition, load_program
from dspool.programs.schemas import SchemaField, object_schema
from dspool.programs.sessions.host import SessionHost

CONFIG = PoolConfig(allowed_imports=("typed_programs",))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)
PNG_64 = base64.b64encode(PNG).decode()
PNG_URL = f"data:image/png;base64,{PNG_64}"
WAV_64 = base64.b64encode(b"RIFF\0\0\0\0WAVEfmt ").decode()
PDF_64 = base64.b64encode(b"%PDF-1.7 ...").decode()
PERSON = {"name": "Ada", "age": 36, "mood": "bad", "addresses": [{"city": "London", "since": "1835-07-08"}]}


def program(name: str) -> Any:
    return load_program(Definition(import_path=f"typed_programs:{name}"), CONFIG)


def taken(kind: str, value: Any) -> Any:
    return program(f"Takes_{kind}").check_inputs({"value": value})["value"]


def refusal(kind: str, value: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        taken(kind, value)
    return refused.value


MADE = [
    ("number", 3, "3.0"),
    ("number", "1.5", "1.5"),
    ("count", 7, "7"),
    ("text", "hallo", "'hallo'"),
    ("person", PERSON, "Person(name='Ada', age=36, mood=<Mood.BAD: 'bad'>, addresses=[Address(city='London', "
     "since=datetime.date(1835, 7, 8))], nick='')"),
    ("person", {"name": "A", "age": 1, "nickName": "x"}, "Person(name='A', age=1, mood=<Mood.GOOD: 'good'>, "
     "addresses=[], nick='x')"),
    ("maybe", None, "None"),
    ("people", [{"name": "A", "age": 1}], "[Person(name='A', age=1, mood=<Mood.GOOD: 'good'>, addresses=[], nick='')]"),
    ("by_name", {"a": {"name": "A", "age": 1}}, "{'a': Person(name='A', age=1, mood=<Mood.GOOD: 'good'>, "
     "addresses=[], nick='')}"),
    ("mood", "good", "<Mood.GOOD: 'good'>"),
    ("day", "2026-11-29", "datetime.date(2026, 11, 29)"),
    ("moment", "2026-11-29T10:00:00Z", "datetime.datetime(2026, 11, 29, 10, 0, tzinfo=TzInfo(0))"),
    ("length", "PT90S", "datetime.timedelta(seconds=90)"),
    ("money", "1.10", "Decimal('1.10')"),
    ("key", "12345678-1234-5678-1234-567812345678", "UUID('12345678-1234-5678-1234-567812345678')"),
    ("place", "/tmp/x", "PosixPath('/tmp/x')"),
    ("level", "low", "'low'"),
    ("either", 3, "3"),
    ("either", "3", "'3'"),
    ("pet", {"kind": "dog", "name": "Rex"}, "Dog(kind='dog', name='Rex')"),
    ("node", {"value": 1, "children": [{"value": 2}]}, "Node(value=1, children=[Node(value=2, children=[])])"),
    ("names", ["a"], "Names(root=['a'])"),
    ("event", {"at": "2026-11-29T10:00:00"}, "StrictEvent(at=datetime.datetime(2026, 11, 29, 10, 0))"),
    ("point", {"x": 1}, "Point(x=1.0, y=0.0)"),
    ("pair", [1, "a"], "Pair(left=1, right='a')"),
    ("options", {"depth": 2}, "{'depth': 2}"),
    ("tags", ["a"], "{'a'}"),
    ("both", [1, "a"], "(1, 'a')"),
    ("raw", base64.b64encode(b"\xff\0").decode(), "b'\\xff\\x00'"),
    ("image", PNG_URL, repr(dspy.Image(PNG_URL))),
    ("image", {"url": PNG_URL}, repr(dspy.Image(PNG_URL))),
    ("image", PNG_64, repr(dspy.Image(PNG_URL))),
    ("image", {"file_data": f"data:application/octet-stream;base64,{PNG_64}"}, repr(dspy.Image(PNG_URL))),
    ("image", "https://example.com/cat.png", "Image(url='https://example.com/cat.png')"),
    ("images", [PNG_64, {"url": PNG_URL}], repr([dspy.Image(PNG_URL)] * 2)),
    ("maybe_image", None, "None"),
    ("maybe_image", PNG_64, repr(dspy.Image(PNG_URL))),
    ("album", {"title": "t", "cover": {"url": PNG_URL}},
     f"Album(title='t', cover={dspy.Image(PNG_URL)!r}, notes=None)"),
    ("audio", WAV_64, repr(dspy.Audio(data=WAV_64, audio_format="wav"))),
    ("audio", f"data:audio/x-wav;base64,{WAV_64}", repr(dspy.Audio(data=WAV_64, audio_format="wav"))),
    ("audio", {"data": WAV_64, "audio_format": "mp3"}, repr(dspy.Audio(data=WAV_64, audio_format="mp3"))),
    ("file", f"data:application/pdf;name=a.pdf;base64,{PDF_64}",
     repr(dspy.File(file_data=f"data:application/pdf;base64,{PDF_64}", filename="a.pdf"))),
    ("file", PDF_64, repr(dspy.File(file_data=f"data:application/pdf;base64,{PDF_64}"))),
    ("document", "words", "Document(data='words', title=None, media_type='text/plain', context=None)"),
    ("document", {"file_data": "data:text/plain;base64,d29yZHM=", "filename": "w.txt"},
     "Document(data='words', title='w.txt', media_type='text/plain', context=None)"),
    ("history", {"messages": [{"question": "q"}]}, "History(messages=[{'question': 'q'}])"),
    ("history", [{"question": "q"}], "History(messages=[{'question': 'q'}])"),
    ("code", "x = 1", "Code(code='x = 1')"),
    ("calls", [{"name": "s", "args": {"a": 1}}], None),
    ("anything", {"a": [1]}, "{'a': [1]}"),
    ("object", [1], "[1]"),
    ("variable", "x", "'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "made"), MADE, ids=lambda part: str(part)[:30])
async def test_an_input_is_of_the_type_that_is_declared(kind, value, made):
    host = SessionHost(CONFIG)
    host.deploy(Deployment("p", 1, import_path=f"typed_programs:Takes_{kind}"))
    outputs = (await host.run_async(ExecuteProgram("p", {"value": value}), None)).value["outputs"]
    assert made is None or outputs["value"] == made
    schema = program(f"Takes_{kind}").describe()["inputs"]
    jsonschema.Draft202012Validator.check_schema(schema)
    if (kind, value) != ("number", "1.5"):  # read, although a number is asked for
        jsonschema.Draft202012Validator(schema).validate({"value": value})


REFUSED = [
    ("number", "abc", "value", "expected a valid number"),
    ("number", None, "value", "expected a valid number"),
    ("number", float("nan"), "value", "not finite"),
    ("number", "nan", "value", "finite number"),
    ("count", 1.5, "value", "expected a valid integer"),
    ("text", 3, "value", "expected a valid string"),
    ("text", {"file_data": PNG_URL}, "value", "expected a valid string"),
    ("person", "Ada", "value", "expected an object"),
    ("person", {"name": "Ada"}, "value.age", "missing"),
    ("person", {"name": "Ada", "age": -1}, "value.age", "greater than or equal to 0"),
    ("person", PERSON | {"addresses": [{"city": "a"}, {"city": 3}]}, "value.addresses[1].city", "valid string"),
    ("by_name", {"a secret": {"name": "A"}}, "value{}.age", "missing"),
    ("mood", "awful", "value", "'good' or 'bad'"),
    ("day", "tomorrow", "value", "valid date"),
    ("key", "a secret", "value", "a valid UUID"),
    ("pet", {"kind": "a secret"}, "value", "none of 'cat', 'dog'"),
    ("pet", {"kind": "cat", "lives": "many"}, "value.lives", "valid integer"),
    ("node", {"value": 1, "children": [{"value": "x"}]}, "value.children[0].value", "valid integer"),
    ("short", "abcd", "value", "at most 3 characters"),
    ("checked", {"text": "value"}, "value.text", "wants another text"),
    ("checked", {"text": "key"}, "value", "KeyError at typed_programs:"),
    ("raw", "a secret!", "value", "base64"),
    ("image", "a secret", "value", "base64"),
    ("image", 3, "value", "expected an image"),
    ("image", "data:text/plain;base64,YQ==", "value", "begins with image/"),
    ("image", base64.b64encode(b"words").decode(), "value", "begins with image/"),
    ("image", "gs://bucket/cat.png", "value", "base64"),
    ("image", "/etc/passwd", "value", "base64"),
    ("image", "file:///etc/passwd", "value", "base64"),
    ("image", {"url": PNG_URL, "download": True}, "value", "expected an image"),
    ("image", {"url": "/etc/passwd"}, "value", "base64"),
    ("images", [PNG_64, "a secret"], "value[1]", "base64"),
    ("album", {"title": "t", "cover": {"url": "http://169.254.169.254/"}}, "value.cover", "host on the internet"),
    ("album", {"title": "t", "cover": {"url": "http://a.com/", "download": True}}, "value.cover", "expected an image"),
    ("album", {"title": "t", "cover": {"url": "gs://a/b"}}, "value.cover", "base64"),
    ("album", {"title": "t", "cover": {"url": PNG_URL}, "notes": {"file_id": "f"}}, "value.notes", "own account"),
    ("audio", "http://example.com/a.wav", "value", "base64"),
    ("audio", "/etc/passwd", "value", "base64"),
    ("audio", {"data": "a secret!", "audio_format": "wav"}, "value", "base64"),
    ("file", {"file_id": "f-1"}, "value", "operator's own account"),
    ("file", "http://example.com/a.pdf", "value", "base64"),
    ("history", {"messages": "a secret"}, "value.messages", "valid array"),
    ("code", 3, "value", "does not fit"),
    ("calls", "a secret", "value", "does not fit"),
    ("tool", {"func": "os.system"}, "value", "no JSON value makes one"),
    ("call", "os.system", "value", "no JSON value makes one"),
    ("reader", {}, "value", "no JSON value makes one"),
    ("plain", {}, "value", "no JSON value makes one"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "field", "says"), REFUSED, ids=lambda part: str(part)[:30])
def test_what_cannot_be_made_is_refused_with_its_place_and_without_its_content(kind, value, field, says):
    refused = refusal(kind, value)
    assert refused.details["field"] == field
    assert says in refused.message
    for content in ("secret", "passwd", "169.254", PNG_64):
        assert content not in str(refused.to_wire())


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "[::1]", "0x7f000001", "2130706433",
     "127.1", "x.localhost", "LOCALHOST.", "user:pass@127.0.0.1", "[::ffff:127.0.0.1]", "0", ""],
)  # fmt: skip
def test_no_url_of_a_caller_leads_whoever_fetches_it_into_its_own_network(host):
    assert "internet" in refusal("image", f"http://{host}/cat.png").message
    within = refusal("album", {"title": "t", "cover": {"url": f"http://{host}/cat.png"}})
    assert "internet" in within.message or "does not fit" in within.message


def test_nothing_is_fetched_and_nothing_is_opened(monkeypatch):
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was asked for")

    monkeypatch.setattr("requests.get", never)
    monkeypatch.setattr("requests.Session.request", never)
    taken("image", "https://example.com/cat.png")
    taken("album", {"title": "t", "cover": {"url": "https://example.com/cat.png"}})


def test_every_problem_is_told_with_its_field():
    loaded = program("ByName")
    with pytest.raises(InvalidRequest) as refused:
        loaded.check_inputs({"person": {"name": 3}, "mood": "x"})
    told = [error["field"] for error in refused.value.details["errors"]]
    assert told == ["person.name", "person.age", "mood"]


async def test_a_validator_that_ends_the_process_ends_its_operation_only():
    host = SessionHost(CONFIG)
    host.deploy(Deployment("p", 1, import_path="typed_programs:Takes_checked"))
    with pytest.raises(PoolError, match="SystemExit"):
        await host.run_async(ExecuteProgram("p", {"value": {"text": "exit"}}), None)


async def test_annotations_as_text_defaults_and_names_that_cannot_be_resolved():
    loaded = program("ByName")
    values = loaded.check_inputs({"person": {"name": "A", "age": 1}, "limit": None, "other": {"a": 1}})
    assert isinstance(values["person"], typed_programs.Person)
    assert values["other"] == {"a": 1}
    assert loaded.check_inputs({"person": PERSON, "mood": "good"})["mood"] is typed_programs.Mood.GOOD
    schema = loaded.describe()["inputs"]
    assert schema["required"] == ["person"]
    assert "'Missing' cannot be resolved" in schema["properties"]["other"]["description"]
    assert schema["properties"]["mood"]["default"] == "bad"


@pytest.mark.parametrize("name", ["FromSignature", "OpenFromSignature", "predict"])
def test_without_annotations_the_predictors_signature_says_the_types(name):
    loaded = program(name)
    inputs = {"picture": PNG_64, "person": PERSON, "note": "n", "size": 3}
    values = loaded.check_inputs(inputs)
    assert isinstance(values["picture"], dspy.Image)
    assert isinstance(values["person"], typed_programs.Person)
    with pytest.raises(InvalidRequest, match="greater than or equal to 1"):
        loaded.check_inputs(inputs | {"size": 0})
    schema = loaded.describe()["inputs"]
    assert schema["properties"]["picture"]["description"] == "what to look at"
    assert schema["properties"]["picture"]["x-dspool-type"] == "image"


def test_a_text_field_of_a_predictor_leaves_a_parameter_without_annotation_open():
    notes = ["forward may join them"]
    values = program("FromSignature").check_inputs({"picture": PNG_64, "person": PERSON, "note": notes})
    assert values["note"] is notes


def test_a_program_whose_inputs_are_plain_gets_them_as_they_came():
    inputs = {"value": "text"}
    assert program("Takes_text").check_inputs(inputs) is inputs
    assert program("Box").check_inputs(inputs) is inputs


def test_a_parameter_that_can_only_be_given_by_position_is_refused_when_the_program_is_loaded():
    with pytest.raises(InvalidRequest, match="by position only"):
        program("ByPosition")


def test_the_schemas_of_a_program_are_complete_in_themselves():
    described = program("predict").describe()
    for side in ("inputs", "outputs"):
        schema = described[side]
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert "#/components" not in str(schema)
    assert set(described["inputs"]["required"]) == {"picture", "person", "note", "size"}
    assert described["outputs"]["required"] == ["answer", "score"]
    assert described["outputs"]["properties"]["answer"] == {"type": "string", "description": "in one word"}


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("AnswersText", {"result": {"type": "string"}}),
        ("Answers", {"result": {"$ref": "#/$defs/Person"}}),
        (
            "FromSignature",
            {"answer": {"type": "string", "description": "in one word"}, "score": {"type": "number"}},
        ),
    ],
)
def test_outputs_are_described_by_what_forward_returns_or_its_predictors_give(name, outputs):
    assert program(name).describe()["outputs"]["properties"] == outputs


@pytest.mark.parametrize("mode", ["validation", "serialization"])
@pytest.mark.parametrize("kind", [*typed_programs.TYPES, "ndarray"])
def test_every_type_has_a_schema_both_ways(kind, mode):
    annotation = typed_programs.TYPES.get(kind, numpy.ndarray)
    schema = object_schema([SchemaField("x", annotation)], mode, open=False)
    jsonschema.Draft202012Validator.check_schema(schema)
    if mode == "serialization":
        assert schema["properties"]["x"].get("not") is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("code", dspy.Code(code="x")),
        ("image", dspy.Image(PNG_URL)),
        ("raw", b"\xff"),
        ("calls", dspy.ToolCalls.from_dict_list([{"name": "s", "args": {}}])),
        ("point", typed_programs.Point(1.0)),
        ("person", typed_programs.Person(name="A", age=1)),
        ("pair", typed_programs.Pair(1, "a")),
        ("length", datetime.timedelta(seconds=3)),
        ("album", typed_programs.Album(title="t", cover=dspy.Image(PNG_URL))),
    ],
)
def test_what_is_sent_is_what_the_schema_of_outputs_says(kind, value):
    schema = object_schema([SchemaField("x", typed_programs.TYPES[kind])], "serialization", open=False)
    jsonschema.Draft202012Validator(schema).validate({"x": to_json(value)})


def test_a_spec_has_schemas_as_well():
    spec = {"signature": "question, n: Optional[int] -> answer, tags: list[str]"}
    described = load_program(Definition(spec=spec), CONFIG).describe()
    assert described["inputs"]["required"] == ["question"]
    assert described["outputs"]["properties"]["tags"] == {"type": "array", "items": {"type": "string"}}


async def test_a_stream_makes_its_inputs_as_well():
    host = SessionHost(CONFIG)
    host.deploy(Deployment("p", 1, import_path="typed_programs:Takes_person"))
    told = []

    async def emit(event: Any) -> None:
        told.append(event.value)

    await host.run_async(StreamProgram("p", {"value": PERSON}), None, emit)
    assert told[0] == "Person"
