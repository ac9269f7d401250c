"""OpenAI's language: endpoints, whole answers, chunks of streams, errors; ``openai_requests`` reads its requests."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Optional

from rk3588.errors import (
    AnswerFailed,
    Overdue,
    PromptRefused,
    PromptTooLong,
    QueueFull,
    RequestRefused,
    RkError,
    Unavailable,
)
from rkruntime.daemon.answer_parts import SIGN_OF_LIFE, Part, WholeAnswer
from rkruntime.daemon.toolcalls import Call

from . import openai_requests
from .dialect import Endpoint, Failure, Object, Usage

_DONE = b"data: [DONE]\n\n"
_COMMENT = b": waiting\n\n"


def _event(data: Object) -> bytes:
    """One server-sent event. ASCII only: some clients take U+2028 and the like for the end of a line."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def _usage(usage: Usage) -> Object:
    """``usage`` and its value; nothing where it is not known. ``perf`` is the runtime's, by its own names."""
    if usage.prompt is None:
        return {}
    total = usage.prompt + usage.completion
    counts: Object = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "total_tokens": total}
    counts["prompt_tokens_details"] = {"cached_tokens": 0}  # every prompt is computed whole
    if usage.perf is not None:
        counts["perf"] = usage.perf.facts()
    return {"usage": counts}


class _Streamed(ABC):
    """How both endpoints stream: an event with a chunk each, and one that says that there are no more."""

    stream_type = "text/event-stream"
    _head: Object

    def part(self, part: Part) -> bytes:
        return _event(self._chunk(part))

    def sign_of_life(self, comment: bool) -> bytes:
        return _COMMENT if comment else _event(self._chunk(SIGN_OF_LIFE))

    def end(self, finish_reason: str, usage: Optional[Usage]) -> bytes:
        last = _event(self._chunk(SIGN_OF_LIFE, finish_reason))
        if usage is not None:
            last += _event({**self._head, "choices": [], **_usage(usage)})
        return last + _DONE

    def broken_off(self, failure: Failure) -> bytes:
        return _event(failure.body)

    @abstractmethod
    def _chunk(self, part: Part, finish_reason: Optional[str] = None) -> Object:
        """A chunk with a part, or with none."""


class ChatReply(_Streamed):
    """One answer of /v1/chat/completions."""

    def __init__(self, model: str) -> None:
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._head = {**head, "object": "chat.completion.chunk"}
        self._calls = 0

    def whole(self, answer: WholeAnswer, finish_reason: str, usage: Usage) -> Object:
        message: Object = {"role": "assistant", "content": answer.text if answer.text or not answer.calls else None}
        if answer.thought:
            message["reasoning_content"] = answer.thought
        if answer.calls:
            message["tool_calls"] = [_call(call) for call in answer.calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], **_usage(usage)}

    def begin(self) -> bytes:
        return _event(self._delta({"role": "assistant", "content": ""}))

    def _chunk(self, part: Part, finish_reason: Optional[str] = None) -> Object:
        """What a part has not is left out, not null: any client can read that. A call comes whole, in one chunk."""
        delta: Object = {}
        if part.call is not None:
            delta["tool_calls"] = [{"index": self._calls, **_call(part.call)}]
            self._calls += 1
        elif part.thought:
            delta["reasoning_content"] = part.thought
        elif part.text:
            delta["content"] = part.text
        return self._delta(delta, finish_reason)

    def _delta(self, delta: Object, finish_reason: Optional[str] = None) -> Object:
        return {**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def _call(call: Call) -> Object:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_text()}}


class TextReply(_Streamed):
    """One answer of /v1/completions."""

    def __init__(self, model: str) -> None:
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        self._head = {**head, "model": model}

    def whole(self, answer: WholeAnswer, finish_reason: str, usage: Usage) -> Object:
        return {**self._chunk(Part(answer.text), finish_reason), **_usage(usage)}

    def begin(self) -> bytes:
        return b""

    def _chunk(self, part: Part, finish_reason: Optional[str] = None) -> Object:
        choice = {"index": 0, "text": part.text, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}


def failure(error: RkError) -> Failure:
    """Status, OpenAI's error object and headers for one of our exceptions."""
    if isinstance(error, RequestRefused):
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
        return _failure(error.status, error, "invalid_request_error", error.code, error.param, headers)
    if isinstance(error, PromptTooLong):
        # Programs look for these words, which are OpenAI's.
        message = f"This model's maximum context length is {error.context} tokens: {error}"
        return _failure(400, message, "invalid_request_error", "context_length_exceeded", "messages")
    if isinstance(error, PromptRefused):
        return _failure(400, error, "invalid_request_error", "prompt_refused", "messages")
    if isinstance(error, QueueFull):
        return _failure(429, error, "rate_limit_error", "queue_full", None, _retry(error.retry_after_s))
    if isinstance(error, Unavailable):
        return _failure(503, error, "server_error", "model_unavailable", None, _retry(error.retry_after_s))
    if isinstance(error, Overdue):
        return _failure(504, error, "server_error", "deadline_exceeded")
    if isinstance(error, AnswerFailed):
        return _failure(500, error, "server_error", "answer_failed")
    return _failure(500, error, "server_error", "internal_error")


def _failure(
    status: int,
    message: object,
    kind: str,
    code: Optional[str],
    param: Optional[str] = None,
    headers: Optional[Mapping[str, str]] = None,
) -> Failure:
    error = {"message": str(message), "type": kind, "param": param, "code": code}
    return Failure(status, {"error": error}, headers or {}, code or kind)


def _retry(after_s: Optional[int]) -> Mapping[str, str]:
    return {} if after_s is None else {"retry-after": str(max(1, after_s))}


ENDPOINTS = (
    Endpoint("/v1/chat/completions", openai_requests.chat, ChatReply, failure),
    Endpoint("/v1/completions", openai_requests.completion, TextReply, failure),
)
