"""The format that a request asks its answer to have, in any of the places where servers of this kind take it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Optional

from rk3588.errors import RequestRefused

from . import strictjson
from .fields import Fields, refuse
from .jsonformat import Format
from .strictjson import BadJson

MAX_SCHEMA = 64 << 10  # characters; a longer one would not fit a prompt
_FIELD = "response_format"
# A schema at the top level: vLLM before 0.12; llama.cpp, SGLang, LM Studio; Gemini's.
SCHEMAS = ("guided_json", "json_schema", "response_schema")
# What holds a format besides: llama.cpp's and Ollama's, vLLM's, OpenAI's second interface.
HOLDERS = ("format", "structured_outputs", "text")
# What no prompting can promise. The names are vLLM's, SGLang's, llama.cpp's and TabbyAPI's.
UNSUPPORTED = (
    "guided_regex", "guided_choice", "guided_grammar", "guided_decoding", "structural_tag", "regex", "regex_pattern",
    "grammar", "grammar_string", "ebnf",
)  # fmt: skip
_SETTINGS = ("disable_fallback", "disable_any_whitespace")  # how a grammar is applied, not what it asks for


def wanted(fields: Fields) -> Optional[Format]:
    """What the answer has to be; None for plain text. RequestRefused for what cannot be had, or is asked for twice."""
    _refuse_unsupported(fields)
    found = _of_response_format(fields)
    for field, other in (*_schemas(fields), *_held(fields)):
        if found is not None and other is not None and found.schema != other.schema:
            raise RequestRefused(f"{field!r} and {found.field!r} ask for two formats: leave one of them out", field)
        found = found or other
    return found


def refuse_all(fields: Fields) -> None:
    """For an endpoint that has no format but plain text."""
    if (format := wanted(fields)) is not None:
        raise RequestRefused(
            f"{format.field!r} is not supported here: ask for JSON at /v1/chat/completions", format.field
        )


def _refuse_unsupported(fields: Fields) -> None:
    for name in UNSUPPORTED:
        if fields.get(name):
            raise RequestRefused(
                f"{name!r} is not supported: the runtime cannot be held to a grammar (a JSON Schema in "
                "'response_format' is shown to the model, and the answer checked)",
                name,
            )
    if fields.get("extra_body"):
        raise RequestRefused(
            "'extra_body' is a parameter of OpenAI's client library: put what it holds at the top level", "extra_body"
        )


def _of_response_format(fields: Fields) -> Optional[Format]:
    given = Fields(fields.mapping(_FIELD))
    return _typed(given, _FIELD) if given else None


def _typed(given: Fields, field: str) -> Optional[Format]:
    """{"type": "text" | "json_object" | "json_schema", …}, with the schema where OpenAI or where others put it."""
    kind = given.get("type")
    if kind not in ("text", "json", "json_object", "json_schema"):
        refuse(field, "an object whose type is text, json_object or json_schema")
    inner = given.get("json_schema")
    places = {
        "schema": given.get("schema"),
        "value": given.get("value"),
        "json_schema.schema": inner.get("schema") if isinstance(inner, dict) else inner,
    }
    found = {place: value for place, value in places.items() if value is not None}
    if kind == "text" and found:
        raise RequestRefused(f"{field!r} has a schema, but its type is text: make it json_schema", field)
    if len(found) > 1 and any(value != next(iter(found.values())) for value in found.values()):
        raise RequestRefused(f"{field!r} has two schemas, in {' and '.join(found)}: leave one out", field)
    if kind == "text":
        return None
    for place, value in found.items():
        schema = _schema(value, f"{field}.{place}", field)
        return Format(schema or None, field) if kind == "json_object" else Format(schema, field)
    if kind == "json_schema":
        raise RequestRefused(
            f"{field!r} of type json_schema has to have its schema, an object, in json_schema.schema", field
        )
    return Format(None, field)


def _schemas(fields: Fields) -> list[tuple[str, Format]]:
    found = []
    for name in SCHEMAS:
        value = fields.get(name)
        if value is not None and value != "":
            # llama.cpp's is the schema, LM Studio's is wrapped as OpenAI's.
            wrapped = isinstance(value, dict) and isinstance(value.get("schema"), dict) and "name" in value
            found.append((name, Format(_schema(value["schema"] if wrapped else value, name, name), name)))
    return found


def _held(fields: Fields) -> list[tuple[str, Optional[Format]]]:
    found: list[tuple[str, Optional[Format]]] = []
    form = fields.get("format")
    if form == "json":
        found.append(("format", Format(None, "format")))
    elif form:
        found.append(("format", Format(_schema(form, "format", "format"), "format")))
    text = fields.get("text")
    if isinstance(text, dict) and text.get("format"):
        found.append(("text.format", _typed(Fields(Fields(text).mapping("format")), "text.format")))
    outputs = Fields(fields.mapping("structured_outputs"))
    for name, value in outputs.items():
        where = f"structured_outputs.{name}"
        if name == "json":
            found.append((where, Format(_schema(value, where, where), where)))
        elif name == "json_object" and value is True:
            found.append((where, Format(None, where)))
        elif value and name not in _SETTINGS:
            raise RequestRefused(f"{where!r} is not supported: the runtime cannot be held to a grammar", where)
    return found


def _schema(value: Any, where: str, field: str) -> Mapping[str, Any]:
    """A JSON Schema: an object, or one written as a string."""
    if isinstance(value, str):
        try:
            value = strictjson.parse(value)
        except BadJson as error:
            raise RequestRefused(f"the schema in {where!r} is {error}", field) from error
    if not isinstance(value, dict):
        refuse(where, "a JSON Schema, which is an object")
    size = len(json.dumps(value, ensure_ascii=False))
    if size > MAX_SCHEMA:
        raise RequestRefused(f"the schema in {where!r} has {size} characters: {MAX_SCHEMA} at the most", field)
    return value
