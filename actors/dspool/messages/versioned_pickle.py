"""Messages that two versions of dspool may give each other while one takes the place of the other.

Over a Ray actor call they are pickled. By name: a field that only the sender knows is dropped, one that only the
receiver knows has its default. What goes over the wire is msgpack, which has that by itself.
"""

from __future__ import annotations

from typing import Any, TypeVar

M = TypeVar("M", bound="Message")


class Message:
    """Of a struct whose pickle another version can read, as long as new fields have defaults."""

    __slots__ = ()
    __struct_fields__: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self), {name: getattr(self, name) for name in self.__struct_fields__})


def rebuilt(kind: type[M], fields: dict[str, Any]) -> M:
    """The message of these `fields`, as this version has it."""
    known = kind.__struct_fields__
    return kind(**{name: value for name, value in fields.items() if name in known})


__all__ = ["Message", "rebuilt"]
