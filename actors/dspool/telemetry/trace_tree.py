"""The span tree of one operation, read from the local span files: what `dspool trace` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from dspool.errors import UnknownName
from dspool.telemetry import trace_names as names
from dspool.telemetry.trace_export import DIRECTORY

_ATTRIBUTES = (
    names.PROGRAM,
    names.WORKER,
    names.SESSION,
    names.GEN_AI_PROVIDER,
    names.GEN_AI_INPUT_TOKENS,
    names.GEN_AI_OUTPUT_TOKENS,
    names.HTTP_STATUS,
    names.ATTEMPTS,
    names.OUTCOME,
    names.ERROR_TYPE,
    names.EXCEPTION,
    names.AT,
)


MAX_SPANS: Final = 2000
"""Spans of one trace that are shown, the first ones: a program may make any number."""


class Node(NamedTuple):
    """One span and those below it, in the order of their start."""

    span: dict[str, Any]
    below: list[Node]


_WIDEST: Final = 80
"""Characters of branches before a span; deeper ones are indented no further."""


def find_trace(state_dir: Path, name: str) -> list[dict[str, Any]]:
    """The spans of one trace, oldest first; `name` is an operation id or a trace id.

    Raises:
        UnknownName: no file has it. It may not have been sampled, or its file was rotated away.
    """
    directory = state_dir / DIRECTORY
    traces: set[str] = {name} if len(name) == 32 else set()
    quoted = json.dumps(name)
    for line in _lines(directory):
        # Most lines are of other operations, and not worth parsing.
        if quoted in line and (span := _parse(line)) and span["attributes"].get(names.OPERATION_ID) == name:
            traces.add(span["trace_id"])
    spans = [
        span
        for line in _lines(directory)
        if any(trace in line for trace in traces) and (span := _parse(line)) and span["trace_id"] in traces
    ]
    if not spans:
        raise UnknownName(
            f"no span of {name[:80]!r} in {directory}: not sampled (telemetry.sampling), not yet written, or rotated"
        )
    return sorted(spans, key=lambda span: (span["start_ns"], -span["end_ns"]))


def trees(spans: list[dict[str, Any]]) -> list[Node]:
    """`spans` below their parents. A span whose parent is not among them is a root."""
    nodes = {span["span_id"]: Node(span, []) for span in spans}
    roots: list[Node] = []
    for span in spans:
        parent = nodes.get(span["parent_id"] or "")
        (roots if parent is None else parent.below).append(nodes[span["span_id"]])
    return roots


class DrawnNode(NamedTuple):
    """One span where it is drawn: so deep below its root, behind these branches."""

    span: dict[str, Any]
    depth: int
    branches: str


def drawn(spans: list[dict[str, Any]]) -> list[DrawnNode]:
    """The first `MAX_SPANS` of `spans` in the order in which they are drawn.

    A loop and not a recursion: a program nests its spans as deep as it likes.
    """
    rows = []
    stack = [(root, 0, "", "") for root in reversed(trees(spans[:MAX_SPANS]))]
    while stack:
        node, depth, first, rest = stack.pop()
        rows.append(DrawnNode(node.span, depth, first))
        rest = rest[:_WIDEST]
        last = len(node.below) - 1
        for index in range(last, -1, -1):
            ends = index == last
            stack.append(
                (
                    node.below[index],
                    depth + 1,
                    rest + ("└ " if ends else "├ "),
                    rest + ("  " if ends else "│ "),
                )
            )
    return rows


def render(spans: list[dict[str, Any]]) -> str:
    """The tree as text: offset from its beginning, duration, name and the chief attributes."""
    began = min(span["start_ns"] for span in spans)
    lines = [f"trace {spans[0]['trace_id']}"]
    lines += [_line(node.span, node.branches, began) for node in drawn(spans)]
    if (more := len(spans) - MAX_SPANS) > 0:
        lines.append(f"and {more} more spans")
    return "\n".join(lines)


def _line(span: dict[str, Any], branches: str, began: int) -> str:
    attributes = span["attributes"]
    facts = " ".join(
        f"{key.removeprefix('dspool.').removeprefix('gen_ai.')}={attributes[key]}"
        for key in _ATTRIBUTES
        if key in attributes
    )
    offset, duration = (span["start_ns"] - began) / 1e6, (span["end_ns"] - span["start_ns"]) / 1e6
    failed = "" if span["ok"] else " FAILED"
    return f"{offset:9.2f} ms {duration:9.2f} ms  {branches}{span['name']}{failed}  {facts}".rstrip()


def _lines(directory: Path) -> Iterator[str]:
    for path in sorted(directory.glob("*.jsonl")):
        try:
            with path.open(encoding="utf-8") as file:
                yield from file
        except OSError:
            continue


def _parse(line: str) -> dict[str, Any] | None:
    """None for an unfinished line."""
    try:
        span: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return span
