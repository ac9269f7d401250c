"""In the OpenAPI document: responses, embeddings in both languages, and counting tokens."""

from __future__ import annotations

from typing import Any

from rkruntime.daemon import sampling
from rkruntime.daemon.thinkwish import EFFORTS

from .dialect import Object
from .embeddings import MAX_TEXTS
from .openai_requests import MAX_STOP_LENGTH, MAX_STOPS
from .openapi_shapes import (
    COUNT,
    ERRORS,
    NULL,
    STRING,
    json_,
    list_,
    object_,
    operation,
    or_null,
    post,
    schema,
)  # fmt: skip
from .responses_requests import STATE

_FLOATS: Object = {"type": "array", "items": {"type": "number"}}
_ANTHROPIC = "AnthropicError"
_ROLES = ["system", "developer", "user"]
_NO_ANSWER = [status for status in ERRORS if status not in (422, 501)]


def paths() -> Object:
    told = "Events with names; an error in the middle is an `error`, and the last."
    events = object_({"event": STRING, "data": STRING}, "data", description=told)
    response = {**json_(schema("Response")), "text/event-stream": {"schema": events}}
    said = {**json_(schema("MessageAnswer")), "text/event-stream": {"schema": events}}
    errors = [*_NO_ANSWER, 422]
    return {
        "/v1/responses": {"post": operation("respond", "Answer an input", "ResponseRequest", response, errors)},
        "/v1/embeddings": {"post": _embed("embed", "Embed texts", "EmbeddingRequest", "Embeddings")},
        "/v1/messages": {"post": operation("message", "Answer messages", "MessagesRequest", said, errors, _ANTHROPIC)},
        "/v1/messages/count_tokens": {
            "post": post(
                "count_message", "Count tokens", "MessagesRequest", json_(schema("MessageTokens")), (*_NO_ANSWER, 501),
                _ANTHROPIC,
            )
        },
        "/api/embed": {"post": _embed("ollama_embed", "Embed texts", "OllamaEmbed", "OllamaEmbedded", "OllamaError")},
        "/api/embeddings": {
            "post": _embed("ollama_embeddings", "Embed a text", "OllamaPrompt", "OllamaEmbedding", "OllamaError")
        },
        "/tokenize": {
            "post": post("tokenize", "Count tokens", "TokenizeRequest", json_(schema("Tokens")), (*_NO_ANSWER, 501))
        },
    }


def _embed(name: str, summary: str, request: str, answer: str, shape: str = "Error") -> Object:
    return operation(name, summary, request, json_(schema(answer)), _NO_ANSWER, shape)


def schemas() -> Object:
    return {**_responses(), **_messages(), **_embeddings(), **_tokens()}


def _responses() -> Object:
    part = object_({"type": {"enum": ["input_text", "output_text", "text"]}, "text": STRING}, "type", "text")
    content = {"anyOf": [STRING, list_(part)]}
    said = object_({"type": {"const": "message"}, "role": {"enum": _ROLES}, "content": content}, "role", "content")
    answered = object_({"role": {"const": "assistant"}, "content": content}, "role", "content")
    call = object_(
        {"type": {"const": "function_call"}, "call_id": STRING, "name": STRING, "arguments": STRING},
        "type", "name", "arguments",
    )  # fmt: skip
    kind = {"const": "function_call_output"}
    result = object_({"type": kind, "call_id": STRING, "output": content}, "type", "output")
    items = list_({"anyOf": [said, answered, call, result]}, minItems=1)
    plain = {"anyOf": [NULL, object_({"type": {"const": "text"}}, "type")]}
    tool = object_({"type": {"const": "function"}, "name": STRING, "parameters": {"type": "object"}}, "type", "name")
    request = {
        "model": or_null("string", description="A name from /v1/models; left out: the loaded model."),
        "input": {"anyOf": [{"type": "string", "minLength": 1}, items]},
        "instructions": or_null("string"),
        "stream": or_null("boolean"),
        "max_output_tokens": or_null("integer", minimum=1),
        "tools": or_null("array", items=tool),
        "tool_choice": {"enum": ["auto", "none", None]},
        "text": or_null("object", properties={"format": plain}),
        "store": or_null("boolean", description="Nothing is kept."),
        "top_logprobs": {"enum": [0, None]},
        "response_format": NULL,
        "chat_template_kwargs": NULL,
        "logit_bias": NULL,
        "reasoning": or_null("object", properties={"effort": {"enum": [*EFFORTS, None]}, "enabled": NULL}),
        "parallel_tool_calls": or_null("boolean"),
        **{name: {"enum": [None, False] if name == "background" else [None]} for name in STATE},
        **{name: or_null("number") for name in sampling.NAMES},
        "seed": or_null("integer"),
    }
    message = {
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "status": STRING,
        "content": list_(object_({"type": {"const": "output_text"}, "text": STRING}, "type", "text")),
    }
    thought = object_({"type": {"const": "reasoning"}, "content": list_({"type": "object"})}, "type", "content")
    called = object_({**call["properties"], "id": STRING, "status": STRING}, "type", "name", "arguments", "call_id")
    response: dict[str, Any] = {
        "id": STRING,
        "object": {"const": "response"},
        "created_at": COUNT,
        "status": {"enum": ["completed", "incomplete"]},
        "model": STRING,
        "output": list_({"anyOf": [object_(message, *message), thought, called]}),
        "usage": or_null("object"),
        "incomplete_details": or_null("object"),
    }
    return {"ResponseRequest": object_(request, "input"), "Response": object_(response, *response)}


def _messages() -> Object:
    part = object_({"type": {"const": "text"}, "text": STRING}, "type", "text")
    content = {"anyOf": [STRING, list_(part)]}
    message = object_({"role": {"enum": ["user", "assistant"]}, "content": content}, "role", "content")
    tool = object_({"name": STRING, "description": STRING, "input_schema": {"type": "object"}}, "name")
    choice = object_({"type": {"enum": ["auto", "none"]}}, "type")
    request = {
        "model": or_null("string", description="A name from /v1/models; left out: the loaded model."),
        "messages": list_(message, minItems=1),
        "system": {"anyOf": [NULL, content]},
        "max_tokens": or_null("integer", minimum=1),
        "stream": or_null("boolean"),
        "stop_sequences": or_null("array", items={"type": "string", "maxLength": MAX_STOP_LENGTH}, maxItems=MAX_STOPS),
        "tools": or_null("array", items=tool),
        "tool_choice": {"anyOf": [NULL, choice]},
        "thinking": or_null("object", properties={"type": {"enum": ["enabled", "disabled", "adaptive"]}}),
        **{name: or_null("number") for name in ("temperature", "top_p", "top_k")},
    }
    answer = {
        "id": STRING,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": STRING,
        "content": list_({"type": "object", "required": ["type"]}),
        "stop_reason": {"enum": ["end_turn", "max_tokens", "tool_use"]},
        "usage": object_(dict.fromkeys(("input_tokens", "output_tokens"), COUNT), "input_tokens", "output_tokens"),
    }
    error = object_({"type": STRING, "message": STRING}, "type", "message")
    return {
        "MessagesRequest": object_(request, "messages"),
        "MessageAnswer": object_(answer, *answer),
        "MessageTokens": object_({"input_tokens": COUNT}, "input_tokens"),
        _ANTHROPIC: object_({"type": {"const": "error"}, "error": error}, "type", "error"),
    }


def _embeddings() -> Object:
    one = {"type": "string", "minLength": 1}
    texts = {"anyOf": [one, list_(one, minItems=1, maxItems=MAX_TEXTS)]}
    dimensions = {"description": "The first so many of the model's own.", "type": ["integer", "null"], "minimum": 1}
    model = or_null("string")
    openai = {
        "input": texts,
        "model": model,
        "encoding_format": {"enum": ["float", "base64", None]},
        "dimensions": dimensions,
        "user": or_null("string"),
    }
    vector = {"anyOf": [_FLOATS, STRING]}
    embedded = object_({"object": {"const": "embedding"}, "index": COUNT, "embedding": vector}, "index", "embedding")
    usage = object_(dict.fromkeys(("prompt_tokens", "total_tokens"), COUNT), "prompt_tokens", "total_tokens")
    answer = {"object": {"const": "list"}, "data": list_(embedded), "model": STRING, "usage": usage}
    ollama = {
        "model": model,
        "keep_alive": {"type": ["string", "number", "null"]},
        "options": or_null("object", properties={"num_ctx": or_null("integer", minimum=0)}),
    }
    cost = dict.fromkeys(("total_duration", "load_duration", "prompt_eval_count"), COUNT)
    cut = or_null("boolean", description="Cut what is too long, instead of refusing it.")
    return {
        "EmbeddingRequest": object_(openai, "input"),
        "Embeddings": object_(answer, *answer),
        "OllamaEmbed": object_({**ollama, "input": texts, "dimensions": dimensions, "truncate": cut}),
        "OllamaEmbedded": object_({"model": STRING, "embeddings": list_(_FLOATS), **cost}, "model", "embeddings"),
        "OllamaPrompt": object_({**ollama, "prompt": or_null("string")}),
        "OllamaEmbedding": object_({"embedding": _FLOATS}, "embedding"),
    }


def _tokens() -> Object:
    text = {"type": "string", "minLength": 1}
    given = {"prompt": text, "content": text, "messages": list_(schema("Message"), minItems=1)}
    one = [object_({**dict.fromkeys(given, NULL), name: shape}, name) for name, shape in given.items()]
    return {
        "TokenizeRequest": {"type": "object", "properties": {"model": or_null("string")}, "anyOf": one},
        "Tokens": object_({"count": COUNT, "max_model_len": COUNT}, "count", "max_model_len"),
    }
