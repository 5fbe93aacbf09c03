"""What an evaluation is given: examples in a file, which of their fields are inputs, and a metric of the user's."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dspool.errors import InvalidRequest
from dspool.messages import JSON

Metric = Callable[..., Any]
"""What `dspool.programs.metrics.score_of` asks."""


class Example(NamedTuple):
    """One line of the file."""

    line: int
    fields: dict[str, JSON]
    inputs: dict[str, JSON]


def read_examples(file: Path, names: Sequence[str], limit: int | None) -> list[Example]:
    """The examples of a file with one JSON object on each line; `names` are those of the inputs.

    An input that a line does not have is left out: the program may have a default for it.

    Raises:
        InvalidRequest: the file cannot be read; a line, which is named, is no object or has none of the inputs.
    """
    examples: list[Example] = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        if limit is not None and len(examples) >= limit:
            break
        try:
            fields = json.loads(line)
        except ValueError as odd:
            raise InvalidRequest(f"{file}, line {number}: not JSON: {odd}") from None
        if not isinstance(fields, dict):
            raise InvalidRequest(
                f"{file}, line {number}: an example is an object, this is a {type(fields).__name__}"
            )
        inputs = {name: fields[name] for name in names if name in fields}
        if not inputs:
            raise InvalidRequest(
                f"{file}, line {number}: it has none of the inputs {', '.join(names)}; --inputs names them otherwise"
            )
        examples.append(Example(number, fields, inputs))
    if not examples:
        raise InvalidRequest(f"{file} has no examples")
    return examples


def input_names(info: Any) -> list[str]:
    """The inputs of a program by what its workers say of it; empty if they do not know."""
    if not isinstance(info, dict):
        return []
    schema = info.get("inputs")
    if isinstance(schema, dict) and isinstance(schema.get("properties"), dict):
        return list(schema["properties"])
    signature = info.get("signature")
    fields = signature.get("inputs") if isinstance(signature, dict) else None
    return [str(field["name"]) for field in fields or () if isinstance(field, dict) and "name" in field]


def metric_of(path: str) -> Metric:
    """The function that `package.module:name` names.

    Raises:
        InvalidRequest: there is no such module or function, or importing it failed; says why.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise InvalidRequest(f"{path!r} names no metric: package.module:function")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as failed:
        raise InvalidRequest(
            f"the metric {path} cannot be imported: {type(failed).__name__}: {failed}"
        ) from failed
    if not callable(found):
        raise InvalidRequest(f"the metric {path} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError as failed:
        raise InvalidRequest(f"cannot read {file}: {failed.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{file} is not UTF-8") from None
