"""Why a start fails, or a service does not write."""

from __future__ import annotations

import re

from docs._generators.markdown import sentence
from docs._generators.markdown import table as markdown_table
from dspool.causes import CAUSES


def table() -> str:
    rows = []
    for name, cause in CAUSES.items():
        found = re.sub(r"\{(\w+)\}", r"*\1*", cause.found)
        rows.append((f"`{name}`", found, sentence(cause.meaning), sentence(cause.remedy)))
    return markdown_table(("`details.cause`", "what is said", "what follows", "what to do"), rows)
