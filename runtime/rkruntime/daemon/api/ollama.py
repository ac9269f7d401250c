"""Ollama's language: endpoints, whole answers, lines of streams, errors; ``ollama_requests`` reads its requests."""

from __future__ import annotations

import datetime
import json
import time
from abc import ABC, abstractmethod
from typing import Optional

from rk3588.errors import RkError
from rkruntime.daemon.answer_parts import Part, WholeAnswer
from rkruntime.daemon.jobs import Durations
from rkruntime.daemon.toolcalls import Call

from . import ollama_requests, openai
from .dialect import Endpoint, Failure, Object, Usage

STREAM_TYPE = "application/x-ndjson"


def timestamp(moment: Optional[datetime.datetime] = None) -> str:
    found = moment or datetime.datetime.now(datetime.timezone.utc)
    return found.isoformat(timespec="microseconds").replace("+00:00", "Z")


def line(data: Object) -> bytes:
    """One line of a stream. ASCII only: some clients take U+2028 and the like for the end of a line."""
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def durations(began_ns: int, usage: Usage) -> Object:
    """Nanoseconds: of the whole request here, of prompt and answer as the worker measured them.

    The load is the part of the wait before the run that it may account for: a model that was there cost none.
    """
    run = usage.durations or Durations()
    total = max(time.monotonic_ns() - began_ns, run.prompt_ns + run.answer_ns)
    found: Object = {
        "total_duration": total,
        "load_duration": min(run.load_ns, total - run.prompt_ns - run.answer_ns),
    }
    if usage.prompt is not None:
        found["prompt_eval_count"] = usage.prompt
    return {**found, "prompt_eval_duration": run.prompt_ns}


class _Lines(ABC):
    """How both endpoints answer: a line with a part each, and one that is done."""

    stream_type = STREAM_TYPE

    def __init__(self, model: str) -> None:
        self._model, self._began_ns, self._calls = model, time.monotonic_ns(), 0

    def whole(self, answer: WholeAnswer, finish_reason: str, usage: Usage) -> Object:
        return {**self._line(answer), **self._end(finish_reason, usage)}

    def begin(self) -> bytes:
        return b""

    def part(self, part: Part) -> bytes:
        return line(self._line(WholeAnswer.of([part])))

    def sign_of_life(self, comment: bool) -> bytes:  # noqa: ARG002  # there are no comments in JSON
        return line(self._line(WholeAnswer("")))

    def end(self, finish_reason: str, usage: Optional[Usage]) -> bytes:
        return line({**self._line(WholeAnswer("")), **self._end(finish_reason, usage or Usage(None, 0))})

    def broken_off(self, failure: Failure) -> bytes:
        return line(failure.body)

    def _line(self, answer: WholeAnswer) -> Object:
        return {"model": self._model, "created_at": timestamp(), **self._content(answer), "done": False}

    def _end(self, finish_reason: str, usage: Usage) -> Object:
        run = usage.durations or Durations()
        end: Object = {"done": True, "done_reason": "stop" if finish_reason == "tool_calls" else finish_reason}
        if finish_reason == "load":
            return end
        counts = {"eval_count": usage.completion, "eval_duration": run.answer_ns}
        return {**end, **durations(self._began_ns, usage), **counts}

    @abstractmethod
    def _content(self, answer: WholeAnswer) -> Object:
        """What there is of an answer; what is not there is left out."""


class ChatReply(_Lines):
    """One answer of /api/chat."""

    def _content(self, answer: WholeAnswer) -> Object:
        message: Object = {"role": "assistant", "content": answer.text}
        if answer.thought:
            message["thinking"] = answer.thought
        if answer.calls:
            message["tool_calls"] = [self._call(call) for call in answer.calls]
        return {"message": message}

    def _call(self, call: Call) -> Object:
        function = {"index": self._calls, "name": call.name, "arguments": call.arguments}
        self._calls += 1
        return {"id": call.id, "function": function}


class GenerateReply(_Lines):
    """One answer of /api/generate."""

    def _content(self, answer: WholeAnswer) -> Object:
        return {"response": answer.text, **({"thinking": answer.thought} if answer.thought else {})}


def failure(error: RkError) -> Failure:
    """As in OpenAI's language, but with a body that has the message alone."""
    found = openai.failure(error)
    return found._replace(body={"error": found.body["error"]["message"]})


ENDPOINTS = (
    Endpoint("/api/chat", ollama_requests.chat, ChatReply, failure),
    Endpoint("/api/generate", ollama_requests.generate, GenerateReply, failure),
)
