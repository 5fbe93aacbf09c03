"""How Sphinx builds the documentation: `make docs`. Nothing is fetched, and every warning is an error."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

import dspool
from docs._generators.errors import meanings
from dspool.errors import PoolError

HERE = Path(__file__).parent

project = "dspool"
author = "the dspool authors"
version = release = dspool.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_generators"]
templates_path: list[str] = []

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
OPENED = ("dspool.pool", "dspool.blocking", "dspool.local.pool")

html_theme = "furo"
html_title = "dspool"
html_extra_path = ["llms.txt"]
html_static_path = ["_static"]
html_css_files = ["wide-tables.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False

# Docstrings are written in single backticks, and with the sections Args and Raises.
default_role = "code"
SECTIONS = Config(napoleon_use_param=False)
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"AnyCommand": "AnyCommand", "JSON": "JSON"}
autodoc_default_options = {"members": True, "undoc-members": True}

nitpicky = True
# What another project documents (there is no network to look it up), type variables, inner parts of a pool or a double.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!dspool\b).*"),
    (r"py:class", r"dspool\..*\.(T|P|PoolT|PoolOperations|DirectPool|Session|Client|Tracing)"),
]


def promises(app: Sphinx, name: str, source: list[str]) -> None:
    """docs/promises.md is listed where it exists."""
    if name == "index" and not (HERE / "promises.md").exists():
        source[0] = source[0].replace("/promises\n", "")


def short_signature(
    app: Sphinx, what: str, name: str, given: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, None] | None:
    """A configuration takes its fields, which follow one by one; a pool is opened and not constructed."""
    if what == "class" and issubclass(given, BaseModel):
        return "(**settings)", None
    if what == "class" and given.__module__ in OPENED:
        return "", None
    return None


def docstring(app: Sphinx, what: str, name: str, given: Any, options: Any, lines: list[str]) -> None:
    """Sections become lists; an error without a docstring says what the drawing of the tree says about it."""
    # A plural, `StreamEvent`s, is no markup in reStructuredText without a mark between.
    lines[:] = [
        re.sub(r"(`[^`]+`)(\w*)", lambda found: r"\ ".join(filter(None, found.groups())), line)
        for line in lines
    ]
    if isinstance(given, type) and issubclass(given, PoolError) and not given.__dict__.get("__doc__"):
        lines[:] = [meanings().get(given.__name__, ""), ""]
    elif what not in ("attribute", "data"):  # where it would take what stands before a colon for a type
        lines[:] = GoogleDocstring(lines, SECTIONS, app, what, name, given, options).lines()


def sources_beside_pages(app: Sphinx, failed: Exception | None) -> None:
    """Each page in Markdown too, under the names in llms.txt."""
    if failed is None and app.builder.name == "html":
        for name in app.env.found_docs:
            target = Path(app.outdir, f"{name}.md")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(app.env.doc2path(name), target)


def setup(app: Sphinx) -> None:
    app.connect("source-read", promises)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("build-finished", sources_beside_pages)
