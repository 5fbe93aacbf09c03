"""Every key of the configuration, and the variables that are no keys."""

from __future__ import annotations

from docs._generators.markdown import sentence
from docs._generators.markdown import table as markdown_table
from dspool.config import reference_table
from dspool.config.environment import OTHER_VARIABLES


def table() -> str:
    return reference_table()


def other_variables() -> str:
    rows = [(f"`{name}`", sentence(meaning)) for name, meaning in OTHER_VARIABLES.items()]
    return markdown_table(("variable", "meaning"), rows)
