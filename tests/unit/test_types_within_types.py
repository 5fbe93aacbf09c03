"""A type is read and written by the same rules wherever it stands: in a container, in a class, behind an alias."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, NewType

import dspy
import pydantic
import pytest
import typing_extensions
from pydantic import ConfigDict, Field

from dspool.errors import InvalidRequest, ProgramError
from dspool.messages.plain import NotPlain, plain
from dspool.programs.inputs import Inputs, entry_of
from dspool.programs.outputs import outputs_of
from dspool.programs.schemas import SchemaField

PNG = "data:image/png;base64,iVBORw0KGgo="
LEAKED = "sk-of-the-operator"


class Raw(pydantic.BaseModel):
    raw: bytes


@dataclasses.dataclass
class RawData:
    raw: bytes


class RawTuple(NamedTuple):
    raw: bytes


class Number(pydantic.BaseModel):
    number: float


@dataclasses.dataclass
class NumberData:
    number: float


class Shown(pydantic.BaseModel):
    picture: dspy.Image


class Holds(pydantic.BaseModel):
    inner: list[Raw] = []
    pictures: dict[str, Shown] = {}


Blob = NewType("Blob", bytes)
Alias = typing_extensions.TypeAliasType("Alias", bytes)
Ratio = NewType("Ratio", float)
Picture = NewType("Picture", dspy.Image)
PictureAlias = typing_extensions.TypeAliasType("PictureAlias", dspy.Image)


def read(annotation: Any, value: Any) -> Any:
    return Inputs((SchemaField("value", annotation),)).check({"value": value})["value"]


IN_BASE64 = [
    (Sequence[bytes], ["aGk="], [b"hi"]),
    (Mapping[str, bytes], {"a": "aGk="}, {"a": b"hi"}),
    (collections.deque[bytes], ["aGk="], collections.deque([b"hi"])),
    (tuple[bytes, ...], ["aGk="], (b"hi",)),
    (Blob, "aGk=", b"hi"),
    (Alias, "aGk=", b"hi"),
    (Raw, {"raw": "aGk="}, Raw(raw=b"hi")),
    (RawData, {"raw": "aGk="}, RawData(b"hi")),
    (RawTuple, ["aGk="], RawTuple(b"hi")),
    (Holds, {"inner": [{"raw": "aGk="}], "pictures": {}}, Holds(inner=[Raw(raw=b"hi")])),
    (Annotated[bytes, Field(max_length=2)] | None, "aGk=", b"hi"),
]


@pytest.mark.parametrize(
    ("annotation", "sent", "made"), IN_BASE64, ids=lambda part: str(part).partition(" at 0x")[0]
)
def test_bytes_are_base64_wherever_they_stand(annotation, sent, made):
    assert read(annotation, sent) == made
    assert plain(made) == sent
    # What is passed by Python is what came.
    assert read(annotation, plain(made)) == made


class Named(pydantic.BaseModel):
    """Fields that are called as the parts of a schema of pydantic are."""

    type: bytes
    config: dict[str, bytes] = {}
    metadata: Number | None = None
    default: list[Shown] = []
    function: str = ""
    fields_: int = 0

    model_config = ConfigDict(extra="allow")


def test_fields_may_be_called_as_the_parts_of_a_schema_are():
    sent = {
        "type": "aGk=",
        "config": {"a": "aGk="},
        "metadata": {"number": 1.5},
        "default": [{"picture": {"url": PNG}}],
        "function": "f",
        "fields_": 1,
        "extra": "aGk=",
    }
    made = read(Named, sent)
    assert (made.type, made.config, made.default[0].picture) == (b"hi", {"a": b"hi"}, dspy.Image(PNG))
    assert plain(made) == sent
    made.extra = b"hi"
    assert plain(made) == sent
    with pytest.raises(InvalidRequest, match="finite"):
        read(Named, {"type": "", "metadata": {"number": "nan"}})


class Encoded(pydantic.BaseModel):
    raw: pydantic.Base64Bytes
    title: str = pydantic.Field("", serialization_alias="Title")
    more: dict[int, Raw] = {}


def test_what_pydantic_reads_from_base64_by_itself_is_left_to_it():
    made = Encoded(raw=b"aGk=", title="a", more={1: Raw(raw=b"hi")})
    assert made.raw == b"hi"
    sent = {"raw": "aGk=", "Title": "a", "more": {"1": {"raw": "aGk="}}}
    assert {**plain(made), "raw": plain(made)["raw"].strip()} == sent
    assert read(Encoded, {"raw": "aGk="}).raw == b"hi"
    assert read(pydantic.Base64Bytes, "aGk=") == b"hi"


@pytest.mark.parametrize("content", [b"hi", b"\xff\xfe", b"aGk="])
def test_a_model_with_bytes_is_written_in_one_way_and_comes_back(content):
    assert read(Raw, plain(Raw(raw=content))) == Raw(raw=content)
    assert plain(Holds(inner=[Raw(raw=content)]))["inner"] == [plain(RawData(content))]


@pytest.mark.parametrize(
    "annotation",
    [Sequence[float], collections.deque[float], tuple[float, ...], set[float]],
    ids=lambda part: str(part).partition(" at 0x")[0],
)
@pytest.mark.parametrize("sent", ["nan", "inf", "-Infinity"])
def test_no_number_that_is_not_finite_comes_in_a_container(annotation, sent):
    assert list(read(annotation, ["1.5"])) == [1.5]
    with pytest.raises(InvalidRequest, match="finite"):
        read(annotation, [sent])


@pytest.mark.parametrize(
    ("annotation", "sent"),
    [
        (Mapping[str, float], {"a": "nan"}),
        (Ratio, "nan"),
        (Number, {"number": "nan"}),
        (NumberData, {"number": "inf"}),
        (list[Number], [{"number": "nan"}]),
    ],
    ids=lambda part: str(part).partition(" at 0x")[0],
)
def test_no_number_that_is_not_finite_comes_elsewhere(annotation, sent):
    with pytest.raises(InvalidRequest, match="finite"):
        read(annotation, sent)


class Infinite(pydantic.BaseModel):
    number: float
    inner: Number | None = None

    model_config = ConfigDict(allow_inf_nan=True)


def test_a_class_that_takes_what_is_not_finite_gets_it():
    assert read(Infinite, {"number": "inf"}).number == float("inf")
    with pytest.raises(InvalidRequest, match="finite"):
        read(Infinite, {"number": 1, "inner": {"number": "inf"}})
    assert read(Annotated[float, Field(allow_inf_nan=True)], "inf") == float("inf")


@pytest.mark.parametrize(
    ("annotation", "sent", "picture"),
    [
        (Sequence[dspy.Image], [PNG], lambda made: made[0]),
        (Mapping[str, dspy.Image], {"a": PNG}, lambda made: made["a"]),
        (collections.deque[dspy.Image], [PNG], lambda made: made[0]),
        (Picture, PNG, lambda made: made),
        (PictureAlias, PNG, lambda made: made),
        (Shown, {"picture": PNG}, lambda made: made.picture),
        (Shown, {"picture": {"file_data": PNG, "filename": "a.png"}}, lambda made: made.picture),
        (Holds, {"pictures": {"a": {"picture": PNG}}}, lambda made: made.pictures["a"].picture),
    ],
    ids=lambda part: str(part).partition(" at 0x")[0],
)
def test_an_image_is_read_from_a_data_url_wherever_it_stands(annotation, sent, picture):
    assert picture(read(annotation, sent)) == dspy.Image(PNG)


def test_collections_that_pydantic_does_not_know_are_lists():
    assert read(Collection[str], ["a"]) == ["a"]
    assert read(Collection[bytes], ["aGk="]) == [b"hi"]
    for bare in (Collection, typing.Collection, typing.Iterable):
        assert read(bare, ["a", 1]) == ["a", 1]


class Tree(typing.TypedDict):
    value: int
    children: list[Tree]


class Bounded(typing.TypedDict):
    number: Annotated[int, Field(ge=1)]


class Closed(typing.TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")
    number: int


class Partly(typing.TypedDict):
    a: int
    b: typing.NotRequired[int]


class Loose(typing.TypedDict, total=False):
    a: typing.Required[int]
    b: int


def test_a_typed_dict_keeps_what_its_annotations_say():
    tree = {"value": 1, "children": [{"value": 2, "children": []}]}
    assert read(Tree, tree) == tree
    assert read(Sequence[Tree], [tree]) == [tree]
    with pytest.raises(InvalidRequest, match="greater than or equal to 1"):
        read(Bounded, {"number": 0})
    with pytest.raises(InvalidRequest):
        read(Closed, {"number": 1, "other": 2})


@pytest.mark.parametrize("keys", [Partly, Loose])
def test_which_keys_of_a_typed_dict_must_be_there_is_read_from_texts_too(keys):
    """This module's annotations are texts."""
    assert read(keys, {"a": 1}) == {"a": 1}
    with pytest.raises(InvalidRequest, match=r"value\.a"):
        read(keys, {"b": 1})


def test_unpacked_keys_are_required_as_they_say():
    class Program(dspy.Module):
        def forward(self, **inputs: typing_extensions.Unpack[Partly]) -> str:
            return str(inputs)

    inputs = entry_of(Program()).inputs
    assert inputs.check({"a": 1}) == {"a": 1}
    with pytest.raises(InvalidRequest, match="'a' is missing"):
        inputs.check({"b": 1})


# --- what is written --------------------------------------------------------------------------------


class Secretive(pydantic.BaseModel):
    picture: dspy.Image
    key: str = Field(LEAKED, exclude=True)
    number: float = 1.0

    @pydantic.computed_field
    @property
    def twice(self) -> float:
        return 2 * self.number

    @pydantic.field_serializer("number")
    def _two_digits(self, number: float) -> str:
        return f"{number:.2f}"


class Open(pydantic.BaseModel):
    content: Any
    key: str = Field(LEAKED, exclude=True)


class Pictures(pydantic.RootModel[list[dspy.Image]]):
    pass


def test_a_model_that_holds_a_type_of_dspy_is_written_as_it_says_itself():
    picture = {"url": PNG}
    assert plain(Secretive(picture=dspy.Image(PNG))) == {"picture": picture, "number": "1.00", "twice": 2.0}
    assert plain(Open(content=dspy.Image(PNG))) == {"content": picture}
    assert plain(Open(content=[Secretive(picture=dspy.Image(PNG))]))["content"][0]["picture"] == picture
    assert LEAKED not in str(plain([Secretive(picture=dspy.Image(PNG)), Open(content=dspy.Image(PNG))]))
    assert plain(Pictures([dspy.Image(PNG)])) == [picture]


def test_long_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    assert plain(numpy.longdouble(1.5)) == 1.5
    assert plain(numpy.ones((2, 1), dtype=numpy.longdouble)) == [[1.0], [1.0]]
    with pytest.raises(NotPlain):
        plain(numpy.longdouble("inf"))


def test_values_of_a_dict_are_a_list():
    assert plain({"a": 1}.values()) == [1]


def test_two_outputs_that_become_one_are_refused():
    with pytest.raises(ProgramError, match="two outputs"):
        outputs_of(dict.fromkeys(map(chr, (0xD800, 0xD801)), 1))


# --- how a program is called ------------------------------------------------------------------------


class Static(dspy.Module):
    @staticmethod
    def forward(question: str, number: int = 1) -> dict[str, Any]:
        return {"answer": f"{question} {number}"}


class OfClass(dspy.Module):
    @classmethod
    def forward(cls, question: str, number: int = 1) -> dict[str, Any]:
        return {"answer": f"{question} {number}"}


class Answering:
    def __call__(self, question: str, number: int = 1) -> dict[str, Any]:
        return {"answer": f"{question} {number}"}


class Called(dspy.Module):
    forward = Answering()


class OfInstance(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.forward = lambda question, number=1: {"answer": f"{question} {number}"}


class Partial(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.forward = functools.partial(Static.forward, number=1)


class Waiting(dspy.Module):
    async def forward(self, question: str, number: int = 1) -> dict[str, Any]:
        return {"answer": f"{question} {number}"}


@pytest.mark.parametrize("kind", [Static, OfClass, Called, OfInstance, Partial, Waiting])
async def test_a_forward_of_any_kind_runs_with_all_of_its_inputs(kind, caplog, monkeypatch):
    module = kind()
    monkeypatch.setattr(logging.getLogger("dspy"), "propagate", True)
    entry = entry_of(module)
    assert caplog.text == "", "DSPy warns of a forward that is called by itself"
    assert [field.name for field in entry.inputs.fields] == ["question", "number"]
    inputs = entry.inputs.check({"question": "Who?"})
    answer = await module.acall(**inputs) if entry.is_async else module(**inputs)
    assert answer == {"answer": "Who? 1"}


def test_what_open_inputs_are_is_read_from_their_annotation():
    class Scores(dspy.Module):
        def forward(self, **scores: float) -> float:
            return sum(scores.values())

    inputs = entry_of(Scores()).inputs
    assert inputs.check({"a": "1.5", "b": 2}) == {"a": 1.5, "b": 2.0}
    assert inputs.schema()["additionalProperties"] == {"type": "number"}
    with pytest.raises(InvalidRequest) as refused:
        inputs.check({"a": "abc"})
    assert refused.value.details["field"] == "a"


def test_a_module_whose_getattr_raises_something_else_is_a_program():
    class Forwards(dspy.Module):
        def __getattr__(self, name: str) -> Any:
            raise KeyError(name)

        def forward(self, question: str) -> str:
            return question

    assert [field.name for field in entry_of(Forwards()).inputs.fields] == ["question"]
