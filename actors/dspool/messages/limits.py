"""What a caller may send at most: each bound once, with what it bounds.

`docs/reference/limits.md` is this file as a table, with the test that holds each; `service.max_body_bytes` bounds a
request before these do. They are such that no step of an event loop that works on the largest takes more than 50 ms
(`python -m tests.security.loop_steps` measures it).
"""

from __future__ import annotations

from typing import Final

# --- a request ---------------------------------------------------------------------------------------

MAX_BODY_DEPTH: Final = 64
"""Nesting of JSON in a request. Deeper is an attack or a mistake; every later hop would recurse over it."""

MAX_BODY_VALUES: Final = 20_000
"""Values in the JSON of a request: its lists and objects, and what is in them."""

MAX_LONG_NUMBERS: Final = 500
"""Numbers in the JSON of a request with an exponent of three digits; of longer numbers so many hundreds of digits. Each
takes a parser up to 0.04 ms, many times as long as others."""

MAX_FORM_PARTS: Final = 256
"""Parts of a request that is a form."""

MAX_TRIES: Final = 10_000
"""Tries of reading one input whose type is a union that holds itself: a level deeper takes two or more for each."""

MAX_PATH_NAME: Final = 200
"""Characters in one name of a path (pool, program, session)."""

MAX_QUERY_FIELDS: Final = 32
"""Parameters of a query string."""

# --- a program ---------------------------------------------------------------------------------------

MAX_SPEC_BYTES: Final = 131_072
"""A program's spec, without its state, as JSON."""

MAX_FIELDS: Final = 64
"""Input fields, output fields, and fields of one object type: of each this many."""

MAX_TYPES: Final = 128
"""Types in one signature, however nested: each field, each object's field, each element of a list counts."""

MAX_DEPTH: Final = 8
"""Nesting of types."""

MAX_LITERALS: Final = 200
"""Values of one `Literal`."""

MAX_ALL_LITERALS: Final = 1_000
"""Values of all `Literal`s of a signature together."""

MAX_LITERAL_CHARACTERS: Final = 20_000
"""Characters of all values of all `Literal`s of a signature together."""

MAX_INSTRUCTIONS: Final = 20_000
"""Characters of a signature's instructions, or of a signature written as text."""

MAX_DESCRIPTION: Final = 10_000
"""Characters of a field's `desc`."""

MAX_TYPE_TEXT: Final = 10_000
"""Characters of one type written as text."""

MAX_FIELD_NAME: Final = 80
"""Characters of a field's name."""

MAX_IMPORT_PATH: Final = 300
"""Characters of an import path."""

MAX_TOOLS: Final = 64
"""Tools of one agent."""

MAX_STATE_VALUES: Final = 10_000
"""Values in a saved state: its lists and objects, and what is in them."""

MAX_DEMONSTRATIONS: Final = 200
"""Demonstrations in a saved state, of all predictors together: every operation writes them anew."""

# --- a session ---------------------------------------------------------------------------------------

MAX_NAME: Final = 128
"""Characters of the name of a session's program or variable."""

MAX_PROGRAMS: Final = 200
"""Programs of a session."""

MAX_VARIABLES: Final = 1_000
"""Variables of a session."""

MAX_STOP_CHARACTERS: Final = 200
"""One of the at most four texts of the LM setting `stop`."""

# --- what a worker keeps -----------------------------------------------------------------------------

MAX_KEPT_TYPES: Final = 2_048
"""Types of all signatures together that a worker keeps built although no program uses them any more."""

LARGE_CHARACTERS: Final = 16_384
"""Inputs with more characters than this, for all outputs together, run in a thread where short ones run on the worker's
event loop."""

LARGE_VALUES: Final = 500
"""The same for values inside lists and objects."""
