"""Ollama's endpoints in the OpenAPI document."""

from __future__ import annotations

from rkruntime.daemon import sampling
from rkruntime.daemon.config import Config
from rkruntime.daemon.thinkwish import EFFORTS

from .dialect import Object
from .ollama import STREAM_TYPE
from .ollama_requests import MAX_STOP_LENGTH, MAX_STOPS
from .openai_requests import ROLES
from .openapi_shapes import (
    COUNT,
    ERRORS,
    NULL,
    STRING,
    get,
    json_,
    list_,
    object_,
    operation,
    or_null,
    post,
    schema,
)  # fmt: skip

_SHAPE = "OllamaError"
_BOOLEAN: Object = {"type": "boolean"}
_ASKED = (400, 401, 403, 404, 408, 413, 415, 429)  # of what has a body, and is not answered by the model
_NAMED = {"anyOf": [{"required": ["model"]}, {"required": ["name"]}]}


def paths() -> Object:
    return {
        "/api/version": {"get": _get("version", "The version of Ollama whose API this is", "OllamaVersion")},
        "/api/tags": {"get": _get("tags", "The names of the model; never waits for it", "OllamaTags")},
        "/api/ps": {"get": _get("ps", "The model, if it is loaded", "OllamaRunning")},
        "/api/show": {"post": _post("show", "About a model", "OllamaShow", json_(schema("OllamaShown")))},
        "/api/pull": {"post": _post("pull", "Whether a model is there", "OllamaPull", _both("OllamaPulled"))},
        "/api/chat": {"post": _answer("ollama_chat", "Answer a conversation", "OllamaChat", "OllamaAnswer")},
        "/api/generate": {"post": _answer("generate", "Answer a prompt", "OllamaGenerate", "OllamaGenerated")},
    }


def _get(name: str, summary: str, shown: str) -> Object:
    return get(name, summary, {200: ("The answer.", schema(shown))}, 401, 403, shape=_SHAPE)


def _post(name: str, summary: str, request: str, answer: Object) -> Object:
    return post(name, summary, request, answer, _ASKED, _SHAPE)


def _both(whole: str) -> Object:
    """As one object, or as lines that have one each."""
    lines = {"description": "Objects, one a line. An error in the middle is an object with `error`, and the last."}
    return {**json_(schema(whole)), STREAM_TYPE: {"schema": lines}}


def _answer(name: str, summary: str, request: str, whole: str) -> Object:
    return operation(name, summary, request, _both(whole), [status for status in ERRORS if status != 501], _SHAPE)


def schemas() -> Object:
    return {**_requests(), **_about_models(), **_answers()}


def _requests() -> Object:
    stop = {"type": "string", "maxLength": MAX_STOP_LENGTH}
    options = {
        "num_predict": or_null("integer", description="Tokens of the answer; 0 and below: no limit."),
        "num_ctx": or_null("integer", minimum=0, description="Has no effect: the model stays loaded as it is."),
        "stop": {"anyOf": [NULL, list_(stop, maxItems=MAX_STOPS)]},
        "seed": or_null("integer", description="Has no effect."),
        **{name: or_null("number") for name in sampling.NAMES if name != "repetition_penalty"},
        **{name: or_null("number", description="Has no effect.") for name in ("min_p", "typical_p", "mirostat")},
    }
    common = {
        "model": or_null("string", description="A name from /api/tags, or from /v1/models."),
        "stream": or_null("boolean", description="True unless something else is said."),
        "options": or_null("object", properties=options),
        "keep_alive": {"type": ["string", "number", "null"], "description": "The model always stays loaded."},
        "think": {"enum": [True, False, *EFFORTS, None], "description": "Where the template has a switch for it."},
        "logprobs": {"enum": [False, None]},
        "top_logprobs": {"enum": [0, None]},
    }
    form = {
        "anyOf": [NULL, {"enum": ["", "json"]}, {"type": "object", "description": "A JSON Schema."}],
        "description": "JSON by prompting, as `response_format` of /v1/chat/completions.",
    }
    none = or_null("array", maxItems=0)
    message = {
        "role": {"enum": list(ROLES)},
        "content": or_null("string"),
        "images": none,
        "tool_calls": or_null("array", items=schema("ToolCall")),
        "tool_name": or_null("string"),
        "thinking": or_null("string"),
    }
    chat = {
        **common,
        "messages": or_null(
            "array", items=object_(message, "role", "content"), maxItems=Config.max_messages,
            description="None: the model is to be loaded.",
        ),
        "format": form,
        "tools": or_null("array", items=schema("Tool")),
    }  # fmt: skip
    generate = {
        **common,
        "prompt": or_null("string", description="None: the model is to be loaded."),
        "system": or_null("string"),
        "raw": or_null("boolean", description="The prompt as it is, without the model's template."),
        "format": form,
        "suffix": {"enum": ["", None]},
        "template": {"enum": ["", None]},
        "context": none,
        "images": none,
    }
    raw = {"properties": {"raw": {"const": True}}, "required": ["raw"]}
    bare = {"properties": {"system": {"enum": ["", None]}, "format": {"enum": ["", None]}}}
    return {"OllamaChat": object_(chat), "OllamaGenerate": object_(generate, **{"if": raw, "then": bare})}


def _about_models() -> Object:
    named = {"model": or_null("string"), "name": or_null("string")}
    return {
        "OllamaShow": object_({**named, "verbose": or_null("boolean")}, **_NAMED),
        "OllamaPull": object_({**named, "stream": or_null("boolean")}, **_NAMED),
    }


def _answers() -> Object:
    details = object_(
        dict.fromkeys(("parent_model", "format", "family", "parameter_size", "quantization_level"), STRING)
        | {"families": list_(STRING)},
        "family", "quantization_level",
    )  # fmt: skip
    entry = {"name": STRING, "model": STRING, "size": COUNT, "digest": STRING, "details": details}
    running = {**entry, "expires_at": STRING, "size_vram": COUNT, "context_length": COUNT}
    shown = {
        **dict.fromkeys(("modelfile", "parameters", "template", "modified_at"), STRING),
        "details": details,
        "model_info": {"type": "object"},
        "capabilities": list_(STRING),
    }
    counts = ("prompt_eval_count", "eval_count", "total_duration", "load_duration", "prompt_eval_duration")
    answer = {
        "model": STRING,
        "created_at": STRING,
        "done": _BOOLEAN,
        "done_reason": {"enum": ["stop", "length", "load"]},
        **dict.fromkeys((*counts, "eval_duration"), COUNT),
    }
    function = object_({"name": STRING, "arguments": {"type": "object"}, "index": COUNT}, "name", "arguments")
    said = {
        "role": {"const": "assistant"},
        "content": STRING,
        "thinking": STRING,
        "tool_calls": list_(object_({"id": STRING, "function": function}, "function"), minItems=1),
    }
    message = object_(said, "role", "content")
    return {
        "OllamaError": object_({"error": STRING}, "error"),
        "OllamaVersion": object_({"version": STRING, "rkchatd": STRING}, "version"),
        "OllamaTags": object_({"models": list_(object_({**entry, "modified_at": STRING}, *entry))}, "models"),
        "OllamaRunning": object_({"models": list_(object_(running, *running))}, "models"),
        "OllamaShown": object_(shown, *shown),
        "OllamaPulled": object_({"status": {"const": "success"}}, "status"),
        "OllamaAnswer": object_({**answer, "message": message}, "model", "done", "message"),
        "OllamaGenerated": object_({**answer, "response": STRING, "thinking": STRING}, "model", "done", "response"),
    }
