"""Ollama's language: endpoints, whole answers, lines of streams, errors; ``ollama_requests`` reads its requests."""

from __future__ import annotations

import datetime
import json
import time
from abc import ABC, abstractmethod
from typing import Optional

from rk3588.errors import RkError
from rkruntime.daemon.jobs import Durations

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
        self._model, self._began_ns = model, time.monotonic_ns()

    def whole(self, text: str, finish_reason: str, usage: Usage) -> Object:
        return {**self._part(text), **self._end(finish_reason, usage)}

    def begin(self) -> bytes:
        return b""

    def text(self, text: str) -> bytes:
        return line(self._part(text))

    def sign_of_life(self, comment: bool) -> bytes:  # noqa: ARG002  # there are no comments in JSON
        return line(self._part(""))

    def end(self, finish_reason: str, usage: Optional[Usage]) -> bytes:
        return line({**self._part(""), **self._end(finish_reason, usage or Usage(None, 0))})

    def broken_off(self, failure: Failure) -> bytes:
        return line(failure.body)

    def _part(self, text: str) -> Object:
        return {"model": self._model, "created_at": timestamp(), **self._content(text), "done": False}

    def _end(self, finish_reason: str, usage: Usage) -> Object:
        run = usage.durations or Durations()
        end: Object = {"done": True, "done_reason": finish_reason}
        if finish_reason == "load":
            return end
        counts = {"eval_count": usage.completion, "eval_duration": run.answer_ns}
        return {**end, **durations(self._began_ns, usage), **counts}

    @abstractmethod
    def _content(self, text: str) -> Object: ...


class ChatReply(_Lines):
    """One answer of /api/chat."""

    def _content(self, text: str) -> Object:
        return {"message": {"role": "assistant", "content": text}}


class GenerateReply(_Lines):
    """One answer of /api/generate."""

    def _content(self, text: str) -> Object:
        return {"response": text}


def failure(error: RkError) -> Failure:
    """As in OpenAI's language, but with a body that has the message alone."""
    found = openai.failure(error)
    return found._replace(body={"error": found.body["error"]["message"]})


ENDPOINTS = (
    Endpoint("/api/chat", ollama_requests.chat, ChatReply, failure),
    Endpoint("/api/generate", ollama_requests.generate, GenerateReply, failure),
)
