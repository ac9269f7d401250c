"""The OpenAPI document's words on tools and thinking."""

from __future__ import annotations

from rkruntime.daemon.thinkwish import EFFORTS, FIELDS

from .dialect import Object

_STRING: Object = {"type": "string"}
_NAMED: Object = {"type": "object", "required": ["name"], "properties": {"name": _STRING}}

TOOLS = (
    "For the template to show. Where it has no place for them, or a format of calls that is not known here, "
    "x-rk-ignored names them."
)
ONE_CALL = "False: the answer ends with its first call."
TOOL_CHOICE: Object = {
    "anyOf": [
        {"enum": ["auto", "none", "required", None]},
        {
            "type": "object",
            "required": ["type", "function"],
            "properties": {"type": {"const": "function"}, "function": _NAMED},
        },
    ],
    "description": "A call can be demanded of one of `tools`, if the template shows a format of calls that is known "
    "here. The model is told, its answer checked, and it may try twice.",
}
REASONING_EFFORT: Object = {
    "enum": [*EFFORTS, "default", None],
    "description": "none and minimal: no thinking, where the template has a switch. The places of other servers are "
    f"taken, too: {', '.join(FIELDS[1:])}, and variables of the template; two that differ are refused.",
}
EARLIER_THOUGHT: Object = {"type": ["string", "null"], "description": "What was thought before it."}
CALL: Object = {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {
        "id": _STRING,
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": _STRING, "arguments": {**_STRING, "description": "JSON of an object."}},
        },
    },
}
ANSWER: Object = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"], "description": "Null where there are calls alone."},
        "reasoning_content": {**_STRING, "description": "What the model thought before it."},
        "tool_calls": {"type": "array", "items": {"$ref": "#/components/schemas/Call"}, "minItems": 1},
    },
}
