"""What a model is shown of a JSON Schema: an example, which small ones copy more readily than they follow a schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Optional

_DEPTH = 8  # of what is shown; the check knows the whole schema
_EXAMPLES = {"integer": 0, "number": 0.0, "boolean": True, "null": None}  # of everything else, ""
_MOST_WORDS = 200  # characters of a description


def example(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A value in the shape of ``schema``; it need not fit in everything. ``root`` is where references lead into."""
    root = schema if root is None else root
    schema = _resolved(schema, root, depth)
    if not isinstance(schema, dict) or depth > _DEPTH:
        return ""
    for shown in ("const", "default"):
        if shown in schema:
            return schema[shown]
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return choices[0]
    properties = schema.get("properties")
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or isinstance(properties, dict):
        found = properties if isinstance(properties, dict) else {}
        return {name: example(part, root, depth + 1) for name, part in found.items()}
    if kind == "array":
        return [example(schema.get("items"), root, depth + 1)]
    return _EXAMPLES.get(kind, "") if isinstance(kind, str) else ""


def remarks(schema: Any, root: Any = None, depth: int = 0) -> Iterator[str]:
    """Sentences on what an example cannot show."""
    root = schema if root is None else root
    schema = _resolved(schema, root, depth)
    if not isinstance(schema, dict) or depth > _DEPTH:
        return
    properties = schema.get("properties")
    for name, given in properties.items() if isinstance(properties, dict) else ():
        part = _resolved(given, root, depth)
        if not isinstance(part, dict):
            continue
        choices = part.get("enum")
        if isinstance(choices, list) and choices:
            yield f"{_shown(name)} is one of {', '.join(map(_shown, choices))}."
        description = part.get("description")
        if isinstance(description, str) and description.strip():
            yield f"{_shown(name)}: {description.strip()[:_MOST_WORDS]}"
        yield from remarks(part, root, depth + 1)
    if schema.get("type") == "array":
        yield from remarks(schema.get("items"), root, depth + 1)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _resolved(schema: Any, root: Any, depth: int) -> Any:
    """The schema that a reference or the first of several alternatives leads to."""
    for _ in range(_DEPTH - depth):
        if not isinstance(schema, dict):
            break
        several = next((schema[key] for key in ("anyOf", "oneOf", "allOf") if key in schema), None)
        if isinstance(schema.get("$ref"), str):
            schema = _referred(root, schema["$ref"])
        elif isinstance(several, list) and several and "properties" not in schema:
            schema = several[0]
        else:
            break
    return schema


def _referred(root: Mapping[str, Any], reference: str) -> Optional[Any]:
    """Where a reference inside the schema leads; None where it leads to nothing, which the check will say."""
    found: Any = root
    for step in reference.lstrip("#").strip("/").split("/"):
        if step:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found
