"""What the languages of clients have in common: a request that has been read, what it cost, and the shape of an answer.

The rest of the daemon (queue, deadlines, formats, reading) knows these and no language.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional, Protocol

from starlette.requests import Request

from rk3588.errors import RkError
from rkruntime.abi import Perf
from rkruntime.daemon.answer_parts import Part, WholeAnswer
from rkruntime.daemon.config import Config
from rkruntime.daemon.fields import Fields
from rkruntime.daemon.jobs import Durations, Job
from rkruntime.daemon.jsonformat import Format
from rkruntime.daemon.models import ModelName
from rkruntime.daemon.tooluse import CallRules
from rkruntime.thoughts import Tags

Object = dict[str, Any]
FindModel = Callable[[Optional[str]], ModelName]  # by its name; without one, the bundle's
Authorise = Callable[[Request], None]  # RequestRefused without a key that is known
ReadFields = Callable[[Request], Awaitable[Fields]]  # of a body


class Usage(NamedTuple):
    """Tokens of prompt and answer; ``prompt`` is None where the bundle has no vocabulary to count with."""

    prompt: Optional[int]
    completion: int
    durations: Optional[Durations] = None  # of the run, once it has ended
    perf: Optional[Perf] = None  # the library's own figures of it

    def plus(self, other: Usage) -> Usage:
        prompt = None if self.prompt is None or other.prompt is None else self.prompt + other.prompt
        both = self.durations.plus(other.durations) if self.durations and other.durations else None
        perf = self.perf.plus(other.perf) if self.perf and other.perf else None
        durations = both or self.durations or other.durations
        return Usage(prompt, self.completion + other.completion, durations, perf or self.perf or other.perf)


@dataclass(frozen=True)
class AnswerRequest:
    """One request. ``ignored``: fields that were asked for and will have no effect."""

    job: Job
    model: str
    stream: bool
    include_usage: bool
    stops: tuple[str, ...]
    format: Optional[Format]
    ignored: tuple[str, ...]
    tags: Optional[Tags] = None  # between which a thought stands; None: the answer is text, whatever it says
    calls: Optional[CallRules] = None  # None: none are read out of the answer
    context: Optional[int] = None  # tokens that were asked for: the model's own stays, and a difference is told
    runs: bool = True  # False: no answer is wanted, only to hear that the model is there

    def corrected(self, answer: str, problem: str) -> Job:
        """The job that shows the model its own answer and what is wrong with it."""
        required = self.calls is not None and self.calls.required
        what = self.calls.instruction() if self.calls and required else "Answer again, with the corrected JSON only."
        told = f"That answer is not valid: {problem}. {what}"
        mistake = [{"role": "assistant", "content": answer}, {"role": "user", "content": told}]
        return replace(self.job, messages=[*(self.job.messages or ()), *mistake])


class Reply(Protocol):
    """One answer in a language: an object, or the bytes of a stream."""

    stream_type: str  # the media type of a stream

    def __init__(self, model: str) -> None: ...

    def whole(self, answer: WholeAnswer, finish_reason: str, usage: Usage) -> Object:
        """``finish_reason``: stop, length, tool_calls where the model has ended an answer with calls, or load where no
        answer was wanted."""
        ...

    def begin(self) -> bytes:
        """What comes before the first part, with it."""
        ...

    def part(self, part: Part) -> bytes:
        """Some text, some of a thought, or one whole call."""
        ...

    def sign_of_life(self, comment: bool) -> bytes:
        """While nothing comes; ``comment``: as one of the stream's format, where it has any."""
        ...

    def end(self, finish_reason: str, usage: Optional[Usage]) -> bytes:
        """``usage`` is None where it was not asked for."""
        ...

    def broken_off(self, failure: Failure) -> bytes:
        """The last of a stream that cannot go on."""
        ...


class Failure(NamedTuple):
    """An error as HTTP says it; ``code`` is for logs: messages may quote what somebody wrote."""

    status: int
    body: Object
    headers: Mapping[str, str]
    code: str


ReadRequest = Callable[[Mapping[str, Any], Config, FindModel, str], AnswerRequest]
"""Out of a body, the settings, what models there are, and the owner of the key; RequestRefused names the field."""


class Endpoint(NamedTuple):
    """Where a language takes requests, how it reads them, and how it answers."""

    path: str
    read: ReadRequest
    reply: type[Reply]
    failure: Callable[[RkError], Failure]
