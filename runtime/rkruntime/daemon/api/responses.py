"""OpenAI's /v1/responses: one answer as an object with items, or as events about them; ``responses_requests`` reads."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any, Optional

from rkruntime.daemon.answer_parts import Part, WholeAnswer
from rkruntime.daemon.toolcalls import Call

from . import openai, responses_requests
from .dialect import Endpoint, Failure, Object, Usage

_COMMENT = b": waiting\n\n"
_KINDS = {"output_text": "message", "reasoning_text": "reasoning"}  # which item a part of text stands in


def _usage(usage: Usage) -> Optional[Object]:
    """Tokens of thoughts are among those of the output, and not counted apart."""
    if usage.prompt is None:
        return None
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }


class _Text:
    """An item that has text: the message, or what was thought before it."""

    def __init__(self, kind: str) -> None:
        self.kind, self.id = kind, f"{'msg' if kind == 'output_text' else 'rs'}_{uuid.uuid4().hex}"
        self.texts: list[str] = []

    def item(self, status: str) -> Object:
        head: Object = {"id": self.id, "type": _KINDS[self.kind], "status": status}
        if self.kind == "output_text":
            head["role"] = "assistant"
        else:
            head["summary"] = []
        head["content"] = [] if status == "in_progress" else [self.part()]
        return head

    def part(self) -> Object:
        found: Object = {"type": self.kind, "text": "".join(self.texts), **self.more()}
        return {**found, "annotations": []} if self.kind == "output_text" else found

    def more(self) -> Object:
        """What stands beside each of its texts."""
        return {"logprobs": []} if self.kind == "output_text" else {}


def _call_item(call: Call, status: str = "completed") -> Object:
    arguments = call.arguments_text() if status == "completed" else ""
    head = {"id": f"fc_{call.id}", "type": "function_call", "call_id": call.id}
    return {**head, "name": call.name, "arguments": arguments, "status": status}


class ResponsesReply:
    """One answer. Its events are numbered, and each says which item of the whole it is about."""

    stream_type = "text/event-stream"

    def __init__(self, model: str) -> None:
        self._id, self._created, self._model = f"resp_{uuid.uuid4().hex}", int(time.time()), model
        self._items: list[Object] = []  # that are whole
        self._open: Optional[_Text] = None
        self._sent = 0

    def whole(self, answer: WholeAnswer, finish_reason: str, usage: Usage) -> Object:
        items: list[Object] = []
        for kind, text in (("reasoning_text", answer.thought), ("output_text", answer.text)):
            if text or (kind == "output_text" and not answer.calls):
                item = _Text(kind)
                item.texts.append(text)
                items.append(item.item(_status(finish_reason)))
        return self._ended([*items, *map(_call_item, answer.calls)], finish_reason, usage)

    def begin(self) -> bytes:
        response = self._response("in_progress", [])
        kinds = ("response.created", "response.in_progress")
        return b"".join(self._event(kind, response=response) for kind in kinds)

    def part(self, part: Part) -> bytes:
        if part.call is not None:
            return self._close("completed") + self._called(part.call)
        kind = "reasoning_text" if part.thought else "output_text"
        head = b""
        if self._open is None or self._open.kind != kind:
            head = self._close("completed") + self._begin(kind)
        assert self._open is not None
        text = part.thought or part.text
        self._open.texts.append(text)
        return head + self._about(self._open, f"response.{kind}.delta", delta=text, **self._open.more())

    def sign_of_life(self, comment: bool) -> bytes:
        if comment:
            return _COMMENT
        return self._event("response.in_progress", response=self._response("in_progress", []))

    def end(self, finish_reason: str, usage: Optional[Usage]) -> bytes:
        head = b"" if self._open or self._items else self._begin("output_text")
        last = head + self._close(_status(finish_reason))
        whole = self._ended(self._items, finish_reason, usage or Usage(None, 0))
        return last + self._event(f"response.{whole['status']}", response=whole)

    def broken_off(self, failure: Failure) -> bytes:
        """The words stand there twice: as the event has them, and where libraries look for an error."""
        error = failure.body["error"]
        return self._event("error", message=error["message"], code=error["code"], param=error["param"], error=error)

    def _begin(self, kind: str) -> bytes:
        self._open = _Text(kind)
        item = self._open.item("in_progress")
        added = self._event("response.output_item.added", output_index=len(self._items), item=item)
        return added + self._about(self._open, "response.content_part.added", part=self._open.part())

    def _close(self, status: str) -> bytes:
        """The end of the item that is open, if one is."""
        if self._open is None:
            return b""
        about, part, item = self._open, self._open.part(), self._open.item(status)
        ended = (
            self._about(about, f"response.{about.kind}.done", text=part["text"], **about.more())
            + self._about(about, "response.content_part.done", part=part)
            + self._event("response.output_item.done", output_index=len(self._items), item=item)
        )
        self._items.append(item)
        self._open = None
        return ended

    def _called(self, call: Call) -> bytes:
        at, item = len(self._items), _call_item(call)
        self._items.append(item)
        where: Object = {"item_id": item["id"], "output_index": at}
        arguments, kind = item["arguments"], "response.function_call_arguments"
        return (
            self._event("response.output_item.added", output_index=at, item=_call_item(call, "in_progress"))
            + self._event(f"{kind}.delta", delta=arguments, **where)
            + self._event(f"{kind}.done", arguments=arguments, name=call.name, **where)
            + self._event("response.output_item.done", output_index=at, item=item)
        )

    def _ended(self, items: list[Object], finish_reason: str, usage: Usage) -> Object:
        status = _status(finish_reason)
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {**self._response(status, items), "incomplete_details": cut, "usage": _usage(usage)}

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

    def _about(self, about: _Text, kind: str, **more: Any) -> bytes:
        """An event about the one part of an item."""
        return self._event(kind, item_id=about.id, output_index=len(self._items), content_index=0, **more)

    def _event(self, kind: str, **more: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sent, **more}
        self._sent += 1
        return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _status(finish_reason: str) -> str:
    return "incomplete" if finish_reason == "length" else "completed"


ENDPOINTS = (Endpoint("/v1/responses", responses_requests.read, ResponsesReply, openai.failure),)
