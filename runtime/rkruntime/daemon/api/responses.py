"""OpenAI's /v1/responses: one answer as an object with one message, or as events; ``responses_requests`` reads."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any, Optional

from . import openai, responses_requests
from .dialect import Endpoint, Failure, Object, Usage

_COMMENT = b": waiting\n\n"


def _usage(usage: Usage) -> Optional[Object]:
    if usage.prompt is None:
        return None
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }


class ResponsesReply:
    """One answer. Its events are numbered, and each says which part of the whole it is about."""

    stream_type = "text/event-stream"

    def __init__(self, model: str) -> None:
        self._id, self._message_id = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self._created, self._model = int(time.time()), model
        self._texts: list[str] = []
        self._sent = 0

    def whole(self, text: str, finish_reason: str, usage: Usage) -> Object:
        return self._ended(self._message(text, finish_reason), finish_reason, usage)

    def begin(self) -> bytes:
        response = self._response("in_progress", [])
        item = {**self._message("", ""), "content": []}
        return (
            self._event("response.created", response=response)
            + self._event("response.in_progress", response=response)
            + self._event("response.output_item.added", output_index=0, item=item)
            + self._about("response.content_part.added", part=_part(""))
        )

    def text(self, text: str) -> bytes:
        self._texts.append(text)
        return self._about("response.output_text.delta", delta=text, logprobs=[])

    def sign_of_life(self, comment: bool) -> bytes:
        if comment:
            return _COMMENT
        return self._event("response.in_progress", response=self._response("in_progress", []))

    def end(self, finish_reason: str, usage: Optional[Usage]) -> bytes:
        text = "".join(self._texts)
        message = self._message(text, finish_reason)
        whole = self._ended(message, finish_reason, usage or Usage(None, 0))
        return (
            self._about("response.output_text.done", text=text, logprobs=[])
            + self._about("response.content_part.done", part=_part(text))
            + self._event("response.output_item.done", output_index=0, item=message)
            + self._event(f"response.{whole['status']}", response=whole)
        )

    def broken_off(self, failure: Failure) -> bytes:
        """The words stand there twice: as the event has them, and where libraries look for an error."""
        error = failure.body["error"]
        return self._event("error", message=error["message"], code=error["code"], param=error["param"], error=error)

    def _ended(self, message: Object, finish_reason: str, usage: Usage) -> Object:
        cut = finish_reason == "length"
        found = self._response("incomplete" if cut else "completed", [message])
        return {
            **found,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": _usage(usage),
        }

    def _response(self, status: str, output: list[Object]) -> Object:
        nothing = ("error", "incomplete_details", "instructions", "previous_response_id", "usage")
        return {
            **dict.fromkeys(nothing),
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "metadata": {},
            "store": False,
        }

    def _message(self, text: str, finish_reason: str) -> Object:
        """``finish_reason`` is empty while it is under way."""
        status = {"": "in_progress", "length": "incomplete"}.get(finish_reason, "completed")
        head = {"id": self._message_id, "type": "message", "role": "assistant", "status": status}
        return {**head, "content": [_part(text)]}

    def _about(self, kind: str, **more: Any) -> bytes:
        """An event about the one part of the one message."""
        return self._event(kind, item_id=self._message_id, output_index=0, content_index=0, **more)

    def _event(self, kind: str, **more: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sent, **more}
        self._sent += 1
        return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _part(text: str) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


ENDPOINTS = (Endpoint("/v1/responses", responses_requests.read, ResponsesReply, openai.failure),)
