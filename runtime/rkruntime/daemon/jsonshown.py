"""What a model is shown of a JSON Schema: an example, which small ones copy more readily than they follow a schema.

References may lead back to where they stand, each level as wide as the one before, so a few hundred bytes describe more
than can ever be written. What is shown is bounded by ``MOST_SHOWN``, and so is the work for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Optional

MOST_SHOWN = 20_000  # parts and characters: more than a context of 4096 tokens holds
_DEPTH = 8  # of what is shown; the check knows the whole schema
_EXAMPLES = {"integer": 0, "number": 0.0, "boolean": True, "null": None}  # of everything else, ""
_MOST_WORDS = 200  # characters of a description


def example(schema: Any) -> Any:
    """A value in the shape of ``schema``; it need not fit in everything, and what is too much for it is left out."""
    return _Excerpt(schema).example(schema)


def remarks(schema: Any) -> Iterator[str]:
    """Sentences on what an example cannot show."""
    return _Excerpt(schema).remarks(schema)


class _Excerpt:
    """One walk through a schema. ``root`` is where its references lead into."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._room = MOST_SHOWN

    def example(self, schema: Any, depth: int = 0) -> Any:
        schema = self._resolved(schema, depth)
        if not isinstance(schema, dict) or depth > _DEPTH or not self._has_room_for(None):
            return ""
        for shown in ("const", "default"):
            if shown in schema and self._has_room_for(schema[shown]):
                return schema[shown]
        choices = schema.get("enum")
        if isinstance(choices, list) and choices and self._has_room_for(choices[0]):
            return choices[0]
        properties = schema.get("properties")
        kind = schema.get("type")
        kind = kind[0] if isinstance(kind, list) and kind else kind
        if kind == "object" or isinstance(properties, dict):
            found = properties if isinstance(properties, dict) else {}
            return {name: self.example(part, depth + 1) for name, part in found.items() if self._has_room_for(name)}
        if kind == "array":
            return [self.example(schema.get("items"), depth + 1)]
        return _EXAMPLES.get(kind, "") if isinstance(kind, str) else ""

    def remarks(self, schema: Any, depth: int = 0) -> Iterator[str]:
        schema = self._resolved(schema, depth)
        if not isinstance(schema, dict) or depth > _DEPTH or not self._has_room_for(None):
            return
        properties = schema.get("properties")
        for name, given in properties.items() if isinstance(properties, dict) else ():
            part = self._resolved(given, depth)
            if not isinstance(part, dict) or not self._has_room_for(name):
                continue
            choices = part.get("enum")
            if isinstance(choices, list) and choices and self._has_room_for(choices):
                yield f"{_shown(name)} is one of {', '.join(map(_shown, choices))}."
            description = part.get("description")
            if isinstance(description, str) and self._has_room_for(description[:_MOST_WORDS]) and description.strip():
                yield f"{_shown(name)}: {description.strip()[:_MOST_WORDS]}"
            yield from self.remarks(part, depth + 1)
        if schema.get("type") == "array":
            yield from self.remarks(schema.get("items"), depth + 1)

    def _has_room_for(self, value: Any) -> bool:
        """Take what ``value`` costs from the room that is left; False, for what follows too, where it does not fit."""
        values = [value]
        while values and self._room > 0:
            one = values.pop()
            self._room -= 1 + (len(one) if isinstance(one, (str, list, dict)) else 0)
            if self._room > 0 and isinstance(one, (list, dict)):
                values += [*one, *one.values()] if isinstance(one, dict) else one
        return self._room > 0

    def _resolved(self, schema: Any, depth: int) -> Any:
        """The schema that a reference or the first of several alternatives leads to."""
        for _ in range(_DEPTH - depth):
            if not isinstance(schema, dict):
                break
            several = next((schema[key] for key in ("anyOf", "oneOf", "allOf") if key in schema), None)
            if isinstance(schema.get("$ref"), str):
                schema = _referred(self._root, schema["$ref"]) if self._has_room_for(schema["$ref"]) else None
            elif isinstance(several, list) and several and "properties" not in schema:
                schema = several[0]
            else:
                break
        return schema


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _referred(root: Mapping[str, Any], reference: str) -> Optional[Any]:
    """Where a reference inside the schema leads; None where it leads to nothing, which the check will say."""
    found: Any = root
    for step in reference.lstrip("#").strip("/").split("/"):
        if step:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found
