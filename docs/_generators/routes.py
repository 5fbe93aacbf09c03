"""Every route of the HTTP service, from its OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from docs._generators.markdown import codes, sentence
from docs._generators.markdown import table as markdown_table
from docs._generators.schemas import DOCUMENT, kind
from dspool_serve.http.problems import kind_of


class _Entry(NamedTuple):
    method: str
    path: str
    about: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def role(self) -> str | None:
        return self.about.get("x-dspool-role")

    @property
    def problems(self) -> list[str]:
        return [
            code
            for status, answer in self.about["responses"].items()
            if status >= "400"
            for code in re.findall(r"\(`(\w+)`\)", answer["description"])
        ]


_ENTRIES: Final = [
    _Entry(method.upper(), path, about)
    for path, methods in DOCUMENT["paths"].items()
    for method, about in methods.items()
]
_AREAS: Final = {
    "Programs": r".*/pools/\{pool\}/programs",
    "Sessions": r".*/sessions",
    "Workers": r".*/workers",
    "Pool": r"/v1/pools",
    "Service": r"/",
}
"""Title, and what the paths of an area begin with; the first that fits."""
_GROUPS: Final = {
    "all": _ENTRIES,
    "all with a role": [entry for entry in _ENTRIES if entry.role],
    "all of a pool": [entry for entry in _ENTRIES if "{pool}" in entry.path],
    "all for callers and admins": [entry for entry in _ENTRIES if entry.role in ("caller", "admin")],
    "every `POST`": [entry for entry in _ENTRIES if entry.method == "POST"],
    "all with a body": [entry for entry in _ENTRIES if "requestBody" in entry.about],
}
"""Routes that share problems, the widest group first."""


def table() -> str:
    rows = [
        (f"[`{entry.title}`](#{_anchor(entry.title)})", entry.role or "", entry.about["summary"])
        for entry in _ENTRIES
    ]
    return markdown_table(("route", "role", "what it does"), rows)


def details() -> str:
    parts = []
    for area in _AREAS:
        parts.append(f"## {area}\n")
        parts += [_detail(entry) for entry in _ENTRIES if _area(entry.path) == area]
    return "\n".join(parts)


def common_problems() -> str:
    """The problems that whole groups of routes share."""
    rows = [
        (str(kind_of(code).status), f"`{code}`", kind_of(code).title, group)
        for code, group in sorted(_shared().items(), key=lambda item: (kind_of(item[0]).status, item[0]))
    ]
    return markdown_table(("status", "code", "meaning", "routes"), rows)


def _area(path: str) -> str:
    return next(title for title, beginning in _AREAS.items() if re.match(beginning, path))


def _anchor(title: str) -> str:
    """As GitHub and MyST make it from a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _detail(entry: _Entry) -> str:
    lines = [f"### {entry.title}", f"{sentence(entry.about['summary'])}\n"]
    lines.append(f"- Role: {f'`{entry.role}`' if entry.role else 'none is needed'}")
    lines += [
        f"- Query `{parameter['name']}`: {kind(parameter['schema'])}"
        for parameter in entry.about.get("parameters", ())
        if parameter["in"] == "query"
    ]
    if body := entry.about.get("requestBody"):
        needed = "" if body["required"] else ", may be left out"
        lines.append(f"- Body: {kind(body['content']['application/json']['schema'])}{needed}")
    lines += [f"- Answer: {answer}" for answer in _answers(entry.about)]
    if own := _own_problems(entry):
        lines.append(f"- Problems of its own: {codes(own)}")
    return "\n".join(lines) + "\n"


def _answers(about: dict[str, Any]) -> Iterator[str]:
    for status, answer in about["responses"].items():
        if status >= "400":
            continue
        for media, shown in answer.get("content", {"": {}}).items():
            if events := shown.get("x-events"):
                named = (f"`{name}` with {kind(schema)}" for name, schema in events.items())
                yield f"{status}, a stream of events: {', '.join(named)}"
            elif media == "application/json":
                yield f"{status}, {kind(shown['schema'])}"
            else:
                yield f"{status}, `{media}`" if media else f"{status}, no body"


def _shared() -> dict[str, str]:
    """Each code that all routes of a group have, with the widest such group."""
    found: dict[str, str] = {}
    for group, entries in _GROUPS.items():
        for code in set.intersection(*(set(entry.problems) for entry in entries)):
            found.setdefault(code, group)
    return found


def _own_problems(entry: _Entry) -> list[str]:
    shared = _shared()
    return [code for code in entry.problems if code not in shared or entry not in _GROUPS[shared[code]]]
