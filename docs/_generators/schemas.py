"""What goes in and out over HTTP, from the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any, Final

from docs._generators.markdown import sentence
from docs._generators.markdown import table as markdown_table
from dspool_console.dashboard import DASHBOARD
from dspool_serve.api import ROUTES
from dspool_serve.api.examples import EXAMPLES
from dspool_serve.api.openapi import described, document

PAGE: Final = "http-types.md"
DOCUMENT: Final[dict[str, Any]] = document(described((*ROUTES, *DASHBOARD)), version="")
_SCHEMAS: Final[dict[str, Any]] = DOCUMENT["components"]["schemas"]
_EXAMPLES: Final = {type_.__name__: example for type_, example in EXAMPLES.items()}
_BOUNDS: Final = {
    "minimum": "at least {}", "exclusiveMinimum": "more than {}", "maximum": "at most {}",
    "minLength": "length at least {}", "maxLength": "length at most {}", "maxItems": "at most {}",
    "minItems": "at least {}",
}  # fmt: skip


def types() -> str:
    """A section for each type: its fields and an example."""
    return "\n".join(_section(name, schema) for name, schema in sorted(_SCHEMAS.items(), key=_by_title))


def kind(schema: dict[str, Any]) -> str:
    """A schema in words, types as links to their sections."""
    if reference := schema.get("$ref"):
        title = _title(reference.rpartition("/")[2])
        return f"[{title}]({PAGE}#{title.lower()})"
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(map(kind, choices)))
    if values := schema.get("enum"):
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    words = _plain(schema)
    bounds = [text.format(schema[bound]) for bound, text in _BOUNDS.items() if bound in schema]
    return ", ".join([words, *bounds])


def _plain(schema: dict[str, Any]) -> str:
    match schema.get("type"):
        case "array":
            return f"list of {kind(schema.get('items') or {})}"
        case "object":
            values = schema.get("additionalProperties")
            return f"object of {kind(values)}" if isinstance(values, dict) and values else "object"
        case None:
            return "any JSON value"
        case named:
            return str(named)


def _section(name: str, schema: dict[str, Any]) -> str:
    title = _title(name)
    lines = [f"## {title}"]
    if about := schema.get("description"):
        lines.append(f"{sentence(about)}\n")
    if fields := schema.get("properties"):
        required = schema.get("required", ())
        rows = [
            (f"`{field}`", kind(about), _default(field, about, required), _meaning(about))
            for field, about in fields.items()
        ]
        lines.append(markdown_table(("field", "type", "default", "meaning"), rows))
    if (example := _EXAMPLES.get(title)) is not None:
        lines.append(f"```json\n{json.dumps(example, indent=2, ensure_ascii=False)}\n```\n")
    return "\n".join(lines)


def _default(field: str, schema: dict[str, Any], required: Any) -> str:
    if field in required:
        return "required"
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else ""


def _meaning(schema: dict[str, Any]) -> str:
    return " ".join(schema.get("description", "").split())


def _title(name: str) -> str:
    """The last part of a name; two types called `Health` are told apart by the package of the pool's."""
    package, _, last = name.rpartition(".")
    return last if not package or package.startswith("dspool_serve") else f"Pool{last}"


def _by_title(item: tuple[str, Any]) -> str:
    return _title(item[0])
