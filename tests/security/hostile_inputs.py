"""Values of inputs, settings of LMs and bodies of requests: see `corpus`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

MEGABYTE = 1_000_000
"""About as much as fits into a request by default (`service.max_body_bytes`)."""

Entries = Iterator[tuple[str, Callable[[], Any]]]


def nested(depth: int, value: Any = 1) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def many(unit: bytes, size: int = MEGABYTE) -> bytes:
    """A JSON list of `unit`s."""
    return b"[" + b",".join([unit] * (size // (len(unit) + 1))) + b"]"


def asked(value: bytes) -> bytes:
    return b'{"inputs":{"context":"Paris is a city.","question":' + value + b"}}"


def inputs() -> Entries:
    """Values of one input, as large as a request may be."""
    for name, unit in (
        ("letters", "a"),
        ("words", "word "),
        ("capitals", "Ab "),
        ("digits", "1"),
        ("digits with commas", "1,"),
        ("numbers", "17 "),
        ("dots", "a."),
        ("sentences", "He is. "),
        ("spaces", " "),
        ("line ends", "\n"),
        ("quotes", '."'),
        ("hyphens", "a-"),
        ("names with joints", "A of the "),
        ("places", "in the "),
        ("who did it", "by the "),
        ("money", "$1 "),
        ("dates", "1999-12-3"),
        ("headers of fields", "[[ ## question ## ]]\n"),
        ("tags", "<question>\n"),
        ("closing tags", "\n</question>x"),
        ("observations", "[[ ## observation_1 ## ]]\n"),
        ("brackets", "["),
        ("braces", '{"a":'),
        ("a JSON list", "[1,"),
        ("backslashes", "\\"),
        ("entities", "<&"),
        ("how many", "how many "),
        ("emoji", "\U0001f600"),
        ("nulls", "\0"),
    ):
        yield f"a megabyte of {name}", lambda unit=unit: unit * (MEGABYTE // len(unit.encode()) // 2)
    # Below `LARGE_CHARACTERS`: what a worker reads on its event loop.
    for name, unit in (("abbreviations", "A. "), ("titles", "Dr. "), ("short sentences", "9:00. ")):
        yield f"15,000 characters of {name}", lambda unit=unit: unit * (15_000 // len(unit))
    yield "a JSON list as text", lambda: "[" + ",".join(["1"] * 90_000) + "]"
    yield "a number of a megabyte", lambda: "how many? " + "9" * MEGABYTE
    yield "half a surrogate pair", lambda: "\ud800"
    yield "an integer beyond 64 bits", lambda: 10**30
    yield "a mark of DSPy", lambda: "<<CUSTOM-TYPE-START-IDENTIFIER>>" * 1_000
    yield "lists a hundred deep", lambda: nested(100)
    yield "19,000 numbers", lambda: [1] * 19_000
    yield "19,000 lists", lambda: [[] for _ in range(19_000)]
    yield "19,000 keys", lambda: {str(number): 0 for number in range(19_000)}
    yield "600 lists thirty deep", lambda: [nested(30) for _ in range(600)]
    yield "200,000 numbers", lambda: [1] * 200_000
    yield "100,000 keys", lambda: {str(number): 0 for number in range(100_000)}
    yield "a key of a megabyte", lambda: {"k" * MEGABYTE: 1}


def overrides() -> Entries:
    yield "stops of a megabyte", lambda: {"stop": ["x" * MEGABYTE]}
    yield "100,000 stops", lambda: {"stop": ["x"] * 100_000}
    yield "a stop of half a surrogate pair", lambda: {"stop": ["\ud800"]}
    yield "a seed beyond 64 bits", lambda: {"seed": 10**30}
    yield "a temperature beyond all numbers", lambda: {"temperature": 10**400}
    yield "a temperature that is a list", lambda: {"temperature": []}
    yield "a key of a megabyte", lambda: {"k" * MEGABYTE: 1}
    yield "an endpoint", lambda: {"api_base": "http://127.0.0.1:9"}
    yield "100,000 keys", lambda: {str(number): 0 for number in range(100_000)}


def bodies() -> Entries:
    for name, unit in (
        ("numbers", b"1"),
        ("floats", b"1.5e300"),
        ("numbers of 18 digits", b"1" * 18),
        ("numbers of 19 digits", b"1" * 19),
        ("texts", b'"a"'),
        ("empty texts", b'""'),
        ("lists", b"[]"),
        ("objects", b"{}"),
        ("objects with a key", b'{"a":0}'),
        ("lists thirty deep", b"[" * 30 + b"]" * 30),
        ("escapes", b'"\\u00e9"'),
        ("quotes in texts", b'"\\""'),
        ("backslashes in texts", b'"\\\\"'),
        ("nulls", b"null"),
    ):
        yield f"a megabyte of {name}", lambda unit=unit: asked(many(unit))
    # A parser's fast ways end at large exponents and at many digits.
    for name, unit in (
        ("large floats", b"1e300"),
        ("small floats", b"5e-324"),
        ("floats of twenty digits", b"12345678901234567890e-320"),
        ("floats of 99 digits", b"1" * 99 + b".1"),
        ("floats of 310 digits", b"1" * 308 + b".1"),
        ("integers of 4,000 digits", b"9" * 4_000),
    ):
        yield f"19,000 {name}", lambda unit=unit: asked(many(unit, min(MEGABYTE, 19_000 * (len(unit) + 1))))
    yield "a text of large floats", lambda: asked(b'"' + b"1e300," * (MEGABYTE // 6) + b'"')
    yield "a text of runs of 99 digits", lambda: asked(b'"' + (b"1" * 99 + b" ") * (MEGABYTE // 100) + b'"')
    yield "lists that open", lambda: b'{"inputs":' + b"[" * MEGABYTE
    yield "objects that open", lambda: b'{"inputs":' + b'{"a":' * (MEGABYTE // 5)
    yield "lists half a million deep", lambda: asked(b"[" * (MEGABYTE // 2) + b"]" * (MEGABYTE // 2))
    yield "a number of a million digits", lambda: asked(b"1" * MEGABYTE)
    yield "a fraction of a million digits", lambda: asked(b"0." + b"1" * MEGABYTE)
    yield "an exponent of a million digits", lambda: asked(b"1e" + b"1" * MEGABYTE)
    yield "100,000 keys", lambda: asked(b"{" + b",".join(b'"%d":0' % n for n in range(100_000)) + b"}")
    yield "the same key 100,000 times", lambda: asked(b"{" + b",".join([b'"a":0'] * 100_000) + b"}")
    yield "a text with a million commas", lambda: asked(b'"' + b"," * MEGABYTE + b'"')
    yield "a text with a million brackets", lambda: asked(b'"' + b"[" * MEGABYTE + b'"')
    yield "a text of escaped quotes", lambda: asked(b'"' + b'\\"' * (MEGABYTE // 2) + b'"')
    yield "a text of backslashes", lambda: asked(b'"' + b"\\\\" * (MEGABYTE // 2) + b'"')
    yield "a text of escapes", lambda: asked(b'"' + b"\\u00e9" * (MEGABYTE // 6) + b'"')
    yield "a text that never ends", lambda: asked(b'"' + b"a" * MEGABYTE)[:-2]
    yield "half a surrogate pair", lambda: asked(b'"\\ud800"')
    yield "bytes that are no UTF-8", lambda: asked(b'"' + b"\xff" * 1_000 + b'"')
    yield "spaces", lambda: b" " * MEGABYTE
    yield "nulls", lambda: b"\0" * MEGABYTE
    yield (
        "100,000 sets of fields",
        lambda: b'{"inputs":{' + b",".join(b'"f%d":1' % n for n in range(90_000)) + b"}}",
    )
