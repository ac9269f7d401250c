"""The OpenAPI document, out of the tables that the daemon itself reads requests by.

``openapi.json`` beside this file is what ``python -m rkruntime.daemon.api.openapi --write`` writes, as a test sees to.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from rk3588.conversation_rules import PREFIX, RESERVED
from rkruntime.daemon import formats, web
from rkruntime.daemon.answering import COMMENTS_HEADER, DEADLINE_HEADER, DEADLINE_PATTERN
from rkruntime.daemon.config import Config
from rkruntime.daemon.models import STRUCTURED_OUTPUT

from .dialect import Object
from .openai_requests import AT_LOAD, MAX_STOP_LENGTH, MAX_STOPS, ROLES

_NULL: Object = {"type": "null"}
_STRING: Object = {"type": "string"}
_COUNT: Object = {"type": "integer", "minimum": 0}
_NO_KEY: list[Object] = [{}]
_REQUEST_ID: Object = {"schema": _STRING, "description": "The request's own id, or one made for it."}
_ERRORS = {
    400: "The request cannot be honoured; `param` names the field, `code` is context_length_exceeded, prompt_refused "
    "or null.",
    401: "The API key is missing or not known.",
    403: "The request comes from a web page that is not listed in `cors`, or is for a name that is not this machine's.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed, or comes from a web page and is not application/json.",
    422: "The model did not answer in the JSON that was asked for, though it was told what is wrong.",
    429: "Too many requests wait already.",
    500: "The runtime failed in the middle of the answer.",
    503: "There is no model that could answer now.",
    504: "The deadline has passed.",
}
_STATS = ("model", "runtime", "board", "state", "queued", "running", "restarts", "measured", "predicted", "now")
_LATER = (429, 503)  # say when to try again


def document() -> bytes:
    """The document, as it is served."""
    return resources.files(__package__).joinpath("openapi.json").read_bytes()


def describe() -> Object:
    """The document, made anew."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rkchatd",
            "version": "1",
            "description": "Chat with the language model on an RK3588's NPU, or in its simulation, in the manner of "
            "OpenAI's API. Unknown fields and nulls are ignored.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}, {}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Needed where the daemon was given a file of keys.",
                }
            },
            "schemas": {**_requests(), **_conversation(), **_answers()},
        },
    }


# Shapes.


def _object(properties: Object, *required: str, **more: Any) -> Object:
    return {"type": "object", **({"required": list(required)} if required else {}), "properties": properties, **more}


def _or_null(kind: str, **more: Any) -> Object:
    return {"type": [kind, "null"], **more}


def _list(items: Object, **more: Any) -> Object:
    return {"type": "array", "items": items, **more}


def _schema(name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}"}


# Paths.


def _paths() -> Object:
    answers = [status for status in _ERRORS if status != 422]
    models = _object({"object": {"const": "list"}, "data": _list(_schema("Model"))}, "object", "data")
    unready = {200: ("It serves, or loads.", _schema("Status")), 503: ("No; `reason` says why.", _schema("Status"))}
    unhealthy = {**unready, 503: ("It cannot help itself; `reason` says what to do.", _schema("Status"))}
    one = {"name": "id", "in": "path", "required": True, "schema": _STRING}
    return {
        "/v1/chat/completions": {"post": _answer("chat", "Answer a conversation", "Chat", list(_ERRORS))},
        "/v1/completions": {"post": _answer("complete", "Go on with a text", "", answers)},
        "/v1/models": {
            "get": _get("models", "The names of the model; never waits for it", {200: ("The list.", models)}, 401, 403)
        },
        "/v1/models/{id}": {
            "get": _get("model", "One of these names", {200: ("The name.", _schema("Model"))}, 401, 403, 404, path=one)
        },
        "/health": {"get": _get("health", "Whether the daemon does its work", unhealthy, 403, open=True)},
        "/ready": {
            "get": _get(
                "ready",
                "Whether a request would be answered now",
                {**unready, 200: ("Yes.", _schema("Status"))},
                403,
                open=True,
            )
        },
        **_looked_at(one),
        "/openapi.json": {
            "get": _get("openapi", "This document", {200: ("An OpenAPI document.", {"type": "object"})}, 403, open=True)
        },
    }


def _looked_at(one: Object) -> Object:
    """The chat page, and how things are."""
    place = {"name": "request", "in": "query", "required": False, "schema": _STRING}
    place["description"] = "The X-Request-Id of a request whose place in the queue is wanted."
    stats = _get("stats", "How the daemon and its board are", {200: ("As it is now.", _schema("Stats"))}, 401, 403)
    stats["parameters"].append(place)
    metrics = _get("metrics", "The same, as Prometheus reads it", _texts("text/plain"), 401, 403)
    page = _get("page", "The chat page, where HTML is accepted", _texts("text/html", "text/plain"), 403, open=True)
    which = {"name": "path", "schema": {"enum": sorted(web.files())}}
    kinds = ("text/html", "text/javascript", "text/css", "image/svg+xml")
    file = _get("file", "A file of the page", _texts(*kinds), 403, 404, open=True, path={**one, **which})
    gets = {"/stats": stats, "/metrics": metrics, "/": page, "/web/{path}": file}
    return {path: {"get": get} for path, get in gets.items()}


def _texts(*kinds: str) -> dict[int, tuple[str, Object]]:
    return {200: ("As it is.", {"content": {kind: {"schema": _STRING} for kind in kinds}})}


def _header(name: str, schema: Object, description: str = "") -> Object:
    said = {"description": description} if description else {}
    return {"name": name, "in": "header", "required": False, "schema": schema, **said}


def _response(description: str, content: Object, **headers: Object) -> Object:
    return {"description": description, "headers": {"X-Request-Id": _REQUEST_ID, **headers}, "content": content}


def _json(schema: Object) -> Object:
    return {"application/json": {"schema": schema}}


def _error(status: int) -> Object:
    found = _response(_ERRORS[status], _json(_schema("Error")))
    if status in _LATER:
        found["headers"]["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds."}
    return found


def _get(
    name: str, summary: str, answers: dict[int, tuple[str, Object]], *errors: int, open: bool = False, path: Any = None
) -> Object:
    found = {
        status: _response(description, schema.get("content") or _json(schema))
        for status, (description, schema) in answers.items()
    }
    found.update({status: _error(status) for status in errors})
    return {
        "operationId": name,
        "summary": summary,
        **({"security": _NO_KEY} if open else {}),
        "parameters": [*([path] if path else []), _header("X-Request-Id", _STRING)],
        "responses": {str(status): found[status] for status in sorted(found)},
    }


def _answer(name: str, summary: str, kind: str, errors: list[int]) -> Object:
    stream = _object(
        {"data": _STRING},
        "data",
        description="`data:` lines with one chunk each, then `data: [DONE]`. An error in the middle is a chunk with "
        "`error`, and the last.",
    )
    content = {**_json(_schema(f"{kind}Completion")), "text/event-stream": {"schema": stream}}
    whole = _response("The answer.", content)
    whole["headers"]["x-rk-ignored"] = {
        "schema": _STRING,
        "description": "Fields that were asked for and have no effect.",
    }
    comments = "Signs of life as SSE comments instead of empty chunks."
    deadline = "Seconds that the client would wait, where that is less than the daemon's own deadline."
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [
            _header("X-Request-Id", _STRING),
            _header(COMMENTS_HEADER, {"type": "string", "enum": ["1"]}, comments),
            _header(DEADLINE_HEADER, {"type": "string", "pattern": f"^{DEADLINE_PATTERN}$"}, deadline),
        ],
        "requestBody": {"required": True, "content": _json(_schema(f"{kind or 'Completion'}Request"))},
        "responses": {"200": whole, **{str(status): _error(status) for status in errors}},
    }


# Requests.


def _requests() -> Object:
    limit = _or_null("integer", minimum=-1, description="-1 or null: no limit.", **{"not": {"const": 0}})
    stop = {"type": "string", "maxLength": MAX_STOP_LENGTH}
    unsupported = dict.fromkeys((*formats.UNSUPPORTED, "extra_body"), _NULL)
    common: Object = {
        "model": _or_null("string", description="A name from /v1/models; left out: the loaded model."),
        "stream": _or_null("boolean"),
        "stream_options": _or_null("object", properties={"include_usage": _or_null("boolean")}),
        "max_tokens": limit,
        "stop": {"anyOf": [_NULL, stop, _list(stop, maxItems=MAX_STOPS)]},
        "n": _or_null("integer", enum=[1, None]),
        "seed": _or_null("integer", description="Has no effect."),
        "logit_bias": _or_null("object", maxProperties=0),
        "user": {"description": "Ignored."},
        **{name: _or_null("number", description=_fixed(name, setting)) for name, setting in AT_LOAD.items()},
    }
    messages = _list(_schema("Message"), minItems=1, maxItems=Config.max_messages)
    taken = [{"required": [name]} for name in sorted(RESERVED)]
    chat = {
        "messages": messages,
        "continue_final_message": {"enum": [False, None], "description": "True: as `prefix` of the last message."},
        "max_completion_tokens": limit,
        **common,
        "tools": _or_null(
            "array",
            items=_schema("Tool"),
            description="For the template to show; calls are not read out of the answer.",
        ),
        "tool_choice": {"enum": ["auto", "none", None]},
        "response_format": _response_format(),
        "logprobs": {"enum": [False, None]},
        "top_logprobs": {"enum": [0, None]},
        "chat_template_kwargs": _or_null(
            "object", description="Variables for the template.", **{"not": {"anyOf": taken}}
        ),
        **unsupported,
    }
    text = {"type": "string", "minLength": 1}
    completion = {
        "prompt": {"anyOf": [text, _list(text, minItems=1, maxItems=1)]},
        **common,
        "echo": {"enum": [False, None]},
        "suffix": {"enum": ["", None]},
        "best_of": {"enum": [1, None]},
        "logprobs": _NULL,
        **unsupported,
        **dict.fromkeys(("response_format", *formats.SCHEMAS, "format", "structured_outputs"), _NULL),
    }
    return {"ChatRequest": _object(chat, "messages"), "CompletionRequest": _object(completion, "prompt")}


def _fixed(name: str, setting: str) -> str:
    if not setting:
        return "Fixed at 0."
    return "Fixed when the model is loaded." if name == setting else f"Another name of {setting}."


def _response_format() -> Object:
    schema = {"type": "object", "description": "A JSON Schema. Nothing outside it is fetched."}
    wrapped = _object({"name": _STRING, "strict": _or_null("boolean"), "schema": schema}, "schema")
    none = {"schema": _NULL, "value": _NULL}
    object_ = {**none, "schema": _or_null("object", description="As json_schema.schema.")}
    places = (*formats.SCHEMAS, "format", "structured_outputs.json", "text.format")
    return {
        "anyOf": [
            _NULL,
            _object({"type": {"const": "text"}, **none, "json_schema": _NULL}, "type"),
            _object({"type": {"const": "json_object"}, **object_, "json_schema": _NULL}, "type"),
            _object({"type": {"const": "json_schema"}, "json_schema": wrapped, **none}, "type", "json_schema"),
        ],
        "description": f"One format only. The places of other servers are taken, too: {', '.join(places)}.",
    }


def _conversation() -> Object:
    parts = _list(_schema("TextPart"))
    names = {"name": _or_null("string"), "tool_call_id": _or_null("string")}
    said = {"role": {"enum": [role for role in ROLES if role != "assistant"]}, "content": {"anyOf": [_STRING, parts]}}
    answered = {"role": {"const": "assistant"}, "content": {"anyOf": [_NULL, _STRING, parts]}}
    calls = _or_null("array", items=_schema("ToolCall"))
    begun = {PREFIX: {"enum": [False, None], "description": "True in the last message: the answer goes on with it."}}
    arguments = {
        "description": "An object, as it is or as JSON in a string; a string that is no such JSON reaches the template "
        "as it is.",
        "type": ["object", "string"],
    }
    function = _object({"name": _STRING, "description": _STRING, "parameters": {"type": "object"}}, "name")
    return {
        "Message": {
            "anyOf": [
                _object({**said, **names}, "role", "content"),
                _object({**answered, "tool_calls": calls, **names, **begun}, "role"),
            ]
        },
        "TextPart": _object({"type": {"const": "text"}, "text": _STRING}, "type", "text"),
        "ToolCall": _object(
            {"id": _STRING, "type": _STRING, "function": _object({"name": _STRING, "arguments": arguments}, "name")},
            "function",
        ),
        "Tool": _object({"type": {"const": "function"}, "function": function}, "function"),
    }


# Answers.


def _answers() -> Object:
    message = _object({"role": {"const": "assistant"}, "content": _STRING}, "role", "content")
    tokens = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT)
    error = {
        "message": _STRING,
        "type": {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
        "param": _or_null("string"),
        "code": _or_null("string"),
    }
    status = {
        "state": {"enum": ["loading", "ready", "failed", "reboot", "closed"]},
        "reason": _STRING,
        "queued": _COUNT,
        "running": {"type": "boolean"},
        "restarts": _COUNT,
        "context": {"type": "integer", "description": "Tokens."},
    }
    return {
        "ChatCompletion": _whole_answer("chat.completion", "message", message),
        "Completion": _whole_answer("text_completion", "text", _STRING),
        "Usage": _object(tokens, *tokens),
        "Model": _model(),
        "Status": _object(status, "state", "queued", "running", "restarts"),
        "Stats": _object({**status, "place": _or_null("integer", description="0: being answered; 1: next.")}, *_STATS),
        "Error": _object({"error": _object(error, *error)}, "error"),
    }


def _whole_answer(kind: str, name: str, content: Object) -> Object:
    choice = {
        "index": {"const": 0},
        "finish_reason": {"enum": ["stop", "length"]},
        "logprobs": _NULL,
        name: content,
    }
    answer = {
        "id": _STRING,
        "object": {"const": kind},
        "created": {"type": "integer"},
        "model": _STRING,
        "choices": _list(_object(choice, "index", "finish_reason", name), minItems=1, maxItems=1),
        "usage": _schema("Usage"),
    }
    return _object(answer, "id", "object", "created", "model", "choices")


def _model() -> Object:
    how = {name: {"const": value} for name, value in STRUCTURED_OUTPUT.items()}
    properties = {
        "id": _STRING,
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": _STRING,
        "runtime": {"enum": ["sim", "npu"], "description": "What answers: the simulated runtime, or an NPU's."},
        "max_model_len": {"type": "integer", "description": "Tokens; left out until the model was loaded once."},
        "structured_output": _object(
            how,
            *how,
            description="How an answer comes to be JSON: the model is told (prompted), and the answer checked; its "
            "tokens are not constrained to a grammar.",
        ),
    }
    return _object(properties, "id", "object", "created", "owned_by", "structured_output")


def text() -> str:
    """The file's content."""
    return json.dumps(describe(), indent=1) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        Path(__file__).with_suffix(".json").write_text(text(), encoding="utf-8")
    else:
        print(text(), end="")
