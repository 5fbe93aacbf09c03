"""Programs that say which types they take, and programs that return what is no JSON."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, Protocol, TypedDict, TypeVar

import dspy
import msgspec
import pydantic
from dspy.adapters.types.document import Document

if TYPE_CHECKING:
    from nowhere import Missing

T = TypeVar("T")


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Address(pydantic.BaseModel):
    city: str
    since: datetime.date | None = None


class Person(pydantic.BaseModel):
    name: str
    age: Annotated[int, pydantic.Field(ge=0)]
    mood: Mood = Mood.GOOD
    addresses: list[Address] = []
    nick: str = pydantic.Field("", alias="nickName")


class Node(pydantic.BaseModel):
    value: int
    children: list[Node] = []


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    name: str


class Names(pydantic.RootModel[list[str]]):
    pass


class StrictEvent(pydantic.BaseModel, strict=True):
    at: datetime.datetime


class Checked(pydantic.BaseModel):
    text: str

    @pydantic.field_validator("text")
    @classmethod
    def _check(cls, text: str) -> str:
        if text == "key":
            raise KeyError(text)
        if text == "exit":
            raise SystemExit(3)
        if text == "value":
            raise ValueError("wants another text")
        return text


class Album(pydantic.BaseModel):
    title: str
    cover: dspy.Image
    notes: dspy.File | None = None


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict, total=False):
    depth: int


class Reader(Protocol):
    def read(self) -> str: ...


class Plain:
    pass


def shown(value: Any) -> dict[str, str]:
    return {"kind": type(value).__name__, "value": repr(value)}


TYPES: dict[str, Any] = {
    "number": float,
    "count": int,
    "flag": bool,
    "text": str,
    "person": Person,
    "maybe": Person | None,
    "people": list[Person],
    "by_name": dict[str, Person],
    "mood": Mood,
    "day": datetime.date,
    "moment": datetime.datetime,
    "length": datetime.timedelta,
    "money": decimal.Decimal,
    "key": uuid.UUID,
    "place": Path,
    "level": Literal["low", "high"],
    "either": int | str,
    "pet": Annotated[Cat | Dog, pydantic.Field(discriminator="kind")],
    "node": Node,
    "names": Names,
    "event": StrictEvent,
    "checked": Checked,
    "point": Point,
    "pair": Pair,
    "options": Options,
    "tags": set[str],
    "both": tuple[int, str],
    "short": Annotated[str, pydantic.Field(max_length=3)],
    "raw": bytes,
    "image": dspy.Image,
    "images": list[dspy.Image],
    "maybe_image": dspy.Image | None,
    "album": Album,
    "audio": dspy.Audio,
    "file": dspy.File,
    "document": Document,
    "history": dspy.History,
    "code": dspy.Code,
    "calls": dspy.ToolCalls,
    "tool": dspy.Tool,
    "call": Callable[[int], int],
    "reader": Reader,
    "plain": Plain,
    "anything": Any,
    "object": object,
    "variable": T,
}


class Taking(dspy.Module):
    """Takes `value`, of the type that `TYPES` has under the name that it was made with."""

    async def aforward(self, value: Any) -> Any:
        return shown(value)


def _taking(name: str, annotation: Any) -> type:
    async def aforward(self: Any, value: Any) -> Any:
        return shown(value)

    aforward.__annotations__ = {"value": annotation}
    made = type(f"Takes_{name}", (Taking,), {"aforward": aforward, "__module__": __name__})
    made.__qualname__ = made.__name__
    return made


globals().update({f"Takes_{name}": _taking(name, annotation) for name, annotation in TYPES.items()})


class ByName(dspy.Module):
    """Annotations as texts (`from __future__ import annotations`), of every kind of parameter."""

    async def aforward(
        self,
        person: Person,
        *,
        mood: Mood = Mood.BAD,
        limit: int = None,  # noqa: RUF013
        other: Missing = 1,
    ) -> Any:
        return {"person": repr(person), "mood": str(mood), "limit": limit, "other": other}


class AskWith(dspy.Signature):
    """Say what is asked."""

    picture: dspy.Image = dspy.InputField(desc="what to look at")
    person: Person = dspy.InputField()
    note: str = dspy.InputField()
    size: int = dspy.InputField(ge=1)
    answer: str = dspy.OutputField(desc="in one word")
    score: float = dspy.OutputField()


class FromSignature(dspy.Module):
    """No annotations: the predictor says what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict(AskWith)

    async def aforward(self, picture, person, note, size=3):
        return {name: repr(value) for name, value in locals().items() if name not in ("self", "__class__")}


class Asks(FromSignature):
    async def aforward(self, **inputs):
        return await self.ask.acall(**inputs)


class OpenFromSignature(FromSignature):
    async def aforward(self, **inputs):
        return {name: repr(value) for name, value in inputs.items()}


class Box(dspy.Module, Generic[T]):
    async def aforward(self, value: T) -> dict[str, T]:
        return shown(value)


class ByPosition(dspy.Module):
    def forward(self, question, /):
        return question


class Answers(dspy.Module):
    def forward(self, question: str) -> Person:
        return Person(name=question, age=1)


class AnswersText(dspy.Module):
    def forward(self, question: str) -> str:
        return question


predict = dspy.Predict(AskWith)


# --- what is returned ---


class Struct(msgspec.Struct, tag="st"):
    size: int


class HalfRead:
    def __iter__(self) -> Any:
        raise RuntimeError("secret")

    def __str__(self) -> str:
        raise RuntimeError("secret")


class BadMapping(collections.UserDict):
    def items(self) -> Any:
        raise KeyboardInterrupt


class BadModel(pydantic.BaseModel):
    x: int = 1

    def model_dump(self, **options: Any) -> Any:
        raise SystemExit(1)


class Scored(pydantic.BaseModel):
    score: float
    blob: bytes = b""
    image: dspy.Image | None = None


class Texts(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("secret")


def cyclic() -> Any:
    made: list[Any] = []
    made.append(made)
    return made


def doubled() -> Any:
    made: Any = []
    for _ in range(60):
        made = [made, made]
    return made


def deep(levels: int) -> Any:
    made: Any = 1
    for _ in range(levels):
        made = [made]
    return made


def counting() -> Any:
    yield 1


returns: list[Any] = [None]
"""What `Returning` gives."""


class Returning(dspy.Module):
    async def aforward(self) -> Any:
        return returns[0]


class ReturningInThread(dspy.Module):
    def forward(self) -> Any:
        return returns[0]
