"""The OpenAPI document, out of the tables that the daemon itself reads requests by.

``openapi.json`` beside this file is what ``python -m rkruntime.daemon.api.openapi --write`` writes, as a test sees to.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

from rk3588.conversation_rules import PREFIX, RESERVED
from rk3588.sampling import PENALTIES
from rkruntime.abi import Perf
from rkruntime.daemon import formats, sampling
from rkruntime.daemon.config import Config
from rkruntime.daemon.models import STRUCTURED_OUTPUT
from rkruntime.daemon.tooluse import MOST_CALLS, MOST_TOOLS

from . import openapi_ollama, openapi_others, openapi_page, openapi_tools
from .dialect import Object
from .openai_requests import MAX_STOP_LENGTH, MAX_STOPS, ROLES
from .openapi_shapes import COUNT as _COUNT
from .openapi_shapes import ERRORS as _ERRORS
from .openapi_shapes import NULL as _NULL
from .openapi_shapes import STRING as _STRING
from .openapi_shapes import get as _get
from .openapi_shapes import json_ as _json
from .openapi_shapes import list_ as _list
from .openapi_shapes import object_ as _object
from .openapi_shapes import operation
from .openapi_shapes import or_null as _or_null
from .openapi_shapes import schema as _schema


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
            "OpenAI's API, and of Ollama's. Unknown fields and nulls are ignored.",
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
            "schemas": {
                **_requests(),
                **_conversation(),
                **_answers(),
                **openapi_others.schemas(),
                **openapi_ollama.schemas(),
            },
        },
    }


# Paths.


def _paths() -> Object:
    answers = [status for status in _ERRORS if status not in (422, 501)]
    models = _object({"object": {"const": "list"}, "data": _list(_schema("Model"))}, "object", "data")
    unready = {200: ("It serves, or loads.", _schema("Status")), 503: ("No; `reason` says why.", _schema("Status"))}
    unhealthy = {**unready, 503: ("It cannot help itself; `reason` says what to do.", _schema("Status"))}
    one = {"name": "id", "in": "path", "required": True, "schema": _STRING}
    return {
        "/v1/chat/completions": {"post": _answer("chat", "Answer a conversation", "Chat", [*answers, 422])},
        "/v1/completions": {"post": _answer("complete", "Go on with a text", "", answers)},
        **openapi_others.paths(),
        **openapi_ollama.paths(),
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
        **openapi_page.paths(one),
        "/openapi.json": {
            "get": _get("openapi", "This document", {200: ("An OpenAPI document.", {"type": "object"})}, 403, open=True)
        },
    }


def _answer(name: str, summary: str, kind: str, errors: list[int]) -> Object:
    stream = _object(
        {"data": _STRING},
        "data",
        description="`data:` lines with one chunk each, then `data: [DONE]`. An error in the middle is a chunk with "
        "`error`, and the last.",
    )
    whole = {**_json(_schema(f"{kind}Completion")), "text/event-stream": {"schema": stream}}
    return operation(name, summary, f"{kind or 'Completion'}Request", whole, errors)


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
        **{name: _or_null("number", description=_sampled(name, setting)) for name, setting in sampling.NAMES.items()},
    }
    messages = _list(_schema("Message"), minItems=1, maxItems=Config.max_messages)
    taken = [{"required": [name]} for name in sorted(RESERVED)]
    chat = {
        "messages": messages,
        "continue_final_message": {"enum": [False, None], "description": "True: as `prefix` of the last message."},
        "max_completion_tokens": limit,
        **common,
        "tools": _or_null("array", items=_schema("Tool"), maxItems=MOST_TOOLS, description=openapi_tools.TOOLS),
        "tool_choice": openapi_tools.TOOL_CHOICE,
        "parallel_tool_calls": _or_null("boolean", description=openapi_tools.ONE_CALL),
        "reasoning_effort": openapi_tools.REASONING_EFFORT,
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


def _sampled(name: str, setting: str) -> str:
    if name != setting:
        return f"Another name of {setting}."
    fixed = "0" if setting in PENALTIES else "what the model was loaded with"
    return f"Where the runtime takes it with a run (librkllmrt 1.3), {sampling.described(name)}; else it is {fixed}."


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
    answered["reasoning_content"] = openapi_tools.EARLIER_THOUGHT
    answered["tool_calls"] = _or_null("array", items=_schema("ToolCall"), maxItems=MOST_CALLS)
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
                _object({**answered, **names, **begun}, "role"),
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
    tokens: Object = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT)
    tokens["prompt_tokens_details"] = _object({"cached_tokens": _COUNT}, "cached_tokens")
    figures = {name: {"type": "number"} for name in Perf._fields}
    perf = _object(figures, *figures, description="The runtime's own figures, from librkllmrt 1.2.1 on.")
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
        "Call": openapi_tools.CALL,
        "ChatCompletion": _whole_answer("chat.completion", "message", openapi_tools.ANSWER),
        "Completion": _whole_answer("text_completion", "text", _STRING),
        "Usage": _object({**tokens, "perf": perf}, *tokens),
        "Model": _model(),
        "Status": _object(status, "state", "queued", "running", "restarts"),
        "Stats": openapi_page.stats(status),
        "Error": _object({"error": _object(error, *error)}, "error"),
    }


def _whole_answer(kind: str, name: str, content: Object) -> Object:
    choice = {
        "index": {"const": 0},
        "finish_reason": {"enum": ["stop", "length", *(["tool_calls"] if name == "message" else [])]},
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
