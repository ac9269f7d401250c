"""Anthropic's /v1/messages: one answer as an object with blocks, or as events; ``anthropic_requests`` reads."""

from __future__ import annotations

import json
import uuid
from typing import Any, Optional

from rk3588.errors import RkError
from rkruntime.daemon.answer_parts import Part, WholeAnswer
from rkruntime.daemon.toolcalls import Call

from . import anthropic_requests, openai
from .dialect import Endpoint, Failure, Object, Usage

PATH = "/v1/messages"
_COMMENT = b": waiting\n\n"
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 422: "invalid_request_error", 429: "rate_limit_error", 503: "overloaded_error",
    504: "timeout_error",
}  # fmt: skip


def _event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data}, separators=(',', ':'))}\n\n".encode()


def _usage(usage: Optional[Usage]) -> Object:
    return {"input_tokens": (usage.prompt if usage else 0) or 0, "output_tokens": usage.completion if usage else 0}


def _block(kind: str, text: str) -> Object:
    """``kind``: text or thinking. A thought's signature would be for a server that trusts nobody."""
    return {"type": kind, kind: text, **({"signature": ""} if kind == "thinking" else {})}


def _tool_use(call: Call, arguments: Any) -> Object:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


class MessagesReply:
    """One answer. Its blocks are numbered as they begin."""

    stream_type = "text/event-stream"

    def __init__(self, model: str) -> None:
        self._id, self._model = f"msg_{uuid.uuid4().hex}", model
        self._blocks, self._open = 0, ""  # how many there were, and of what kind the last is, while it goes on

    def whole(self, answer: WholeAnswer, finish_reason: str, usage: Usage) -> Object:
        content = [_block("thinking", answer.thought)] if answer.thought else []
        if answer.text or not answer.calls:
            content.append(_block("text", answer.text))
        content += [_tool_use(call, call.arguments) for call in answer.calls]
        return self._message(content, _REASONS.get(finish_reason, "end_turn"), usage)

    def begin(self) -> bytes:
        return _event("message_start", message=self._message([], None, None))

    def part(self, part: Part) -> bytes:
        if part.call is not None:
            delta = {"type": "input_json_delta", "partial_json": part.call.arguments_text()}
            head = self._close() + self._begin("tool_use", _tool_use(part.call, {}))
            return head + self._delta(delta) + self._close()
        kind = "thinking" if part.thought else "text"
        head = b"" if self._open == kind else self._close() + self._begin(kind, _block(kind, ""))
        return head + self._delta({"type": f"{kind}_delta", kind: part.thought or part.text})

    def sign_of_life(self, comment: bool) -> bytes:
        return _COMMENT if comment else _event("ping")

    def end(self, finish_reason: str, usage: Optional[Usage]) -> bytes:
        head = b"" if self._blocks else self._begin("text", _block("text", ""))
        stop = {"stop_reason": _REASONS.get(finish_reason, "end_turn"), "stop_sequence": None}
        return head + self._close() + _event("message_delta", delta=stop, usage=_usage(usage)) + _event("message_stop")

    def broken_off(self, failure: Failure) -> bytes:
        return _event("error", error=failure.body["error"])

    def _begin(self, kind: str, block: Object) -> bytes:
        self._open = kind
        self._blocks += 1
        return _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _delta(self, delta: Object) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _close(self) -> bytes:
        closed = _event("content_block_stop", index=self._blocks - 1) if self._open else b""
        self._open = ""
        return closed

    def _message(self, content: list[Object], reason: Optional[str], usage: Optional[Usage]) -> Object:
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        return {**head, "content": content, "stop_reason": reason, "stop_sequence": None, "usage": _usage(usage)}


def failure(error: RkError) -> Failure:
    found = openai.failure(error)
    told = {"type": _KINDS.get(found.status, "api_error"), "message": found.body["error"]["message"]}
    return found._replace(body={"type": "error", "error": told})


ENDPOINTS = (Endpoint(PATH, anthropic_requests.read, MessagesReply, failure),)
