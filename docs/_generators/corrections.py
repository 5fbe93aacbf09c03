"""What dspool corrects in the code of others, and what it rests on there."""

from __future__ import annotations

from docs._generators.markdown import sentence, table
from dspool.corrections import RELIANCES, TABLE, Versions


def switchable() -> str:
    rows = [
        (
            f"`{one.name}`",
            _versions(one.versions),
            sentence(one.reason) + (f" [Upstream]({one.upstream})." if one.upstream else ""),
            sentence(one.without),
        )
        for one in TABLE
    ]
    return table(("name", "holds for", "what is wrong, and what is done", "without it"), rows)


def reliances() -> str:
    rows = [
        (one.part, _versions(one.versions), sentence(one.reason), sentence(one.otherwise))
        for one in RELIANCES
    ]
    return table(("part", "written for", "what it rests on", "with another version"), rows)


def _versions(versions: Versions) -> str:
    return ", ".join(f"{package} `{specifier}`" for package, specifier in versions.items())
