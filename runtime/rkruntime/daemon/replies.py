"""OpenAI's shapes: objects for whole answers, chunks for streams, and errors."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, Union

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

Object = dict[str, Any]


class Usage(NamedTuple):
    """Tokens of prompt and answer; ``prompt`` is None where the bundle has no vocabulary to count with."""

    prompt: Optional[int]
    completion: int

    def plus(self, other: Usage) -> Usage:
        prompt = None if self.prompt is None or other.prompt is None else self.prompt + other.prompt
        return Usage(prompt, self.completion + other.completion)

    def field(self) -> Object:
        """``usage`` and its value; nothing where it is not known."""
        if self.prompt is None:
            return {}
        total = self.prompt + self.completion
        counts = {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}
        return {"usage": counts}


class ChatReply:
    """One answer of /v1/chat/completions."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, finish_reason: str, usage: Usage) -> Object:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], **usage.field()}

    def first(self) -> Optional[Object]:
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, text: str) -> Object:
        return self._chunk({"content": text})

    def beat(self) -> Object:
        """A sign of life that any client can read: content is left out, not null."""
        return self._chunk({})

    def last(self, finish_reason: str) -> Object:
        return self._chunk({}, finish_reason)

    def usage(self, usage: Usage) -> Object:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], **usage.field()}

    def _chunk(self, delta: Object, finish_reason: Optional[str] = None) -> Object:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}


class TextReply:
    """One answer of /v1/completions."""

    def __init__(self, model: str) -> None:
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        self._head = {**head, "model": model}

    def whole(self, text: str, finish_reason: str, usage: Usage) -> Object:
        return {**self._chunk(text, finish_reason), **usage.field()}

    def first(self) -> Optional[Object]:
        return None

    def text(self, text: str) -> Object:
        return self._chunk(text)

    def beat(self) -> Object:
        return self._chunk("")

    def last(self, finish_reason: str) -> Object:
        return self._chunk("", finish_reason)

    def usage(self, usage: Usage) -> Object:
        return {**self._head, "choices": [], **usage.field()}

    def _chunk(self, text: str, finish_reason: Optional[str] = None) -> Object:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}


Reply = Union[ChatReply, TextReply]


def event(data: Object) -> bytes:
    """One server-sent event. ASCII only: some clients take U+2028 and the like for the end of a line."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting\n\n"


class Failure(NamedTuple):
    """An error as HTTP says it."""

    status: int
    body: Object
    headers: Mapping[str, str]

    @property
    def code(self) -> str:
        """For logs: messages may quote what somebody wrote."""
        error = self.body["error"]
        return str(error["code"] or error["type"])


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
    return Failure(status, {"error": error}, headers or {})


def _retry(after_s: Optional[int]) -> Mapping[str, str]:
    return {} if after_s is None else {"retry-after": str(max(1, after_s))}
