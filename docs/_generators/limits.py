"""What a caller may send at most: `dspool.messages.limits` as a table."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

from docs._generators.markdown import sentence
from docs._generators.markdown import table as markdown_table
from dspool.messages import limits


def table() -> str:
    body = ast.parse(Path(str(limits.__file__)).read_text(encoding="utf-8")).body
    rows = []
    for statement, following in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            name = ast.unparse(statement.target)
            meaning = ast.literal_eval(following.value)
            rows.append((f"`{name}`", f"{getattr(limits, name):,}", sentence(meaning)))
    return markdown_table(("limit", "value", "of what"), rows)
