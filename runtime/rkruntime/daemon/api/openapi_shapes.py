"""What every part of the OpenAPI document is put together from: shapes, headers, responses, operations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rkruntime.daemon.answering import COMMENTS_HEADER, DEADLINE_HEADER, DEADLINE_PATTERN, IGNORED_HEADER

from .dialect import Object

NULL: Object = {"type": "null"}
STRING: Object = {"type": "string"}
COUNT: Object = {"type": "integer", "minimum": 0}
NO_KEY: list[Object] = [{}]
REQUEST_ID: Object = {"schema": STRING, "description": "The request's own id, or one made for it."}
ERRORS = {
    400: "The request cannot be honoured; `param` names the field, `code` is context_length_exceeded, prompt_refused "
    "or null.",
    401: "The API key is missing or not known.",
    403: "The request comes from a web page that is not listed in `cors`, or is for a name that is not this machine's.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed, or comes from a web page and is not application/json.",
    422: "The model did not answer with the JSON or the call that was demanded, though it was told what is wrong.",
    429: "Too many requests wait already.",
    500: "The runtime failed in the middle of the answer.",
    501: "Tokens cannot be counted with this bundle.",
    503: "There is no model that could answer now.",
    504: "The deadline has passed.",
}
LATER = (429, 503)  # say when to try again


def object_(properties: Object, *required: str, **more: Any) -> Object:
    return {"type": "object", **({"required": list(required)} if required else {}), "properties": properties, **more}


def or_null(kind: str, **more: Any) -> Object:
    return {"type": [kind, "null"], **more}


def list_(items: Object, **more: Any) -> Object:
    return {"type": "array", "items": items, **more}


def schema(name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}"}


def header(name: str, schema: Object, description: str = "") -> Object:
    said = {"description": description} if description else {}
    return {"name": name, "in": "header", "required": False, "schema": schema, **said}


def response(description: str, content: Object, **headers: Object) -> Object:
    return {"description": description, "headers": {"X-Request-Id": REQUEST_ID, **headers}, "content": content}


def json_(schema: Object) -> Object:
    return {"application/json": {"schema": schema}}


def error(status: int, shape: str = "Error") -> Object:
    found = response(ERRORS[status], json_(schema(shape)))
    if status in LATER:
        found["headers"]["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds."}
    return found


def get(
    name: str,
    summary: str,
    answers: dict[int, tuple[str, Object]],
    *errors: int,
    open: bool = False,
    path: Any = None,
    shape: str = "Error",
) -> Object:
    """``answers``: a description and a schema, or a content by media type, for each status."""
    found = {
        status: response(description, schema.get("content") or json_(schema))
        for status, (description, schema) in answers.items()
    }
    found.update({status: error(status, shape) for status in errors})
    return {
        "operationId": name,
        "summary": summary,
        **({"security": NO_KEY} if open else {}),
        "parameters": [*([path] if path else []), header("X-Request-Id", STRING)],
        "responses": {str(status): found[status] for status in sorted(found)},
    }


def post(name: str, summary: str, request: str, answer: Object, errors: Iterable[int], shape: str = "Error") -> Object:
    """What takes a body and is answered without the model. ``answer``: its content, by media type."""
    answers = {"200": response("The answer.", answer), **{str(status): error(status, shape) for status in errors}}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [header("X-Request-Id", STRING)],
        "requestBody": {"required": True, "content": json_(schema(request))},
        "responses": answers,
    }


def operation(
    name: str, summary: str, request: str, answer: Object, errors: Iterable[int], shape: str = "Error"
) -> Object:
    """What takes a body and is answered by the model."""
    found = post(name, summary, request, answer, errors, shape)
    ignored = "Fields that were asked for and have no effect."
    found["responses"]["200"]["headers"][IGNORED_HEADER] = {"schema": STRING, "description": ignored}
    comments = "Signs of life as SSE comments instead of empty chunks."
    deadline = "Seconds that the client would wait, where that is less than the daemon's own deadline."
    if "text/event-stream" in answer:
        found["parameters"].append(header(COMMENTS_HEADER, {"type": "string", "enum": ["1"]}, comments))
    found["parameters"].append(
        header(DEADLINE_HEADER, {"type": "string", "pattern": f"^{DEADLINE_PATTERN}$"}, deadline)
    )
    return found
