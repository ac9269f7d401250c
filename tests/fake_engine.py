"""An engine without a model: the last message is its script. It refuses, waits, fails and hangs on command.

``say A|B|C`` answers in these pieces, in which ⏎ ends a line (what is no command is said back word by word);
``slow S A|B`` waits S seconds before each; ``opened A|B`` answers behind a prompt that has begun a thought; ``hang``
never answers; ``break A`` fails after A; ``lost`` fails before anything; ``full``, ``long``, ``template``, ``down``,
``reboot`` and ``late`` refuse; ``bug`` raises what nobody expects. Several lines are several answers: each request
takes the next.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from rk3588.errors import AnswerFailed, Overdue, PromptRefused, PromptTooLong, QueueFull, Unavailable
from rkruntime.abi import Perf
from rkruntime.daemon.jobs import Durations, Embed, EngineSettings, Job, Piece, Status

REFUSALS = {
    "full": QueueFull("32 requests are waiting already: try again in about 7 s", 7),
    "long": PromptTooLong("the prompt has 5000 tokens, and a context of 4096 takes 4092: shorten it", 5000, 4096),
    "template": PromptRefused("the chat template does not take this conversation: roles must alternate"),
    "down": Unavailable("the model cannot be loaded: no memory", 3),
    "reboot": Unavailable("the runtime's process hangs: reboot the board"),
    "late": Overdue("the model was not ready within 600 s"),
}


@dataclass
class FakeAnswer:
    """Its ``closed`` counts the calls of close before the end: a client that went must have caused one."""

    pieces_: list[str]
    limit: int
    prompt_tokens: int
    pause_s: float = 0.0
    hangs: bool = False
    error: Exception | None = None
    completion_tokens: int = 0
    durations: Durations | None = None
    perf: Perf | None = None
    finish_reason: str = ""
    opened: str = ""
    place: int | None = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def pieces(self, heartbeat_s: float | None = None) -> AsyncIterator[Piece]:
        for text in self.pieces_[: self.limit]:
            async for beat in self._pause(self.pause_s, heartbeat_s):
                yield beat
            self.completion_tokens += 1
            yield Piece(text)
        if self.hangs:
            async for beat in self._pause(float("inf"), heartbeat_s):
                yield beat
        if self.error:
            raise self.error
        self.finish_reason = "length" if len(self.pieces_) > self.limit else "stop"

    async def _pause(self, seconds: float, heartbeat_s: float | None) -> AsyncIterator[Piece]:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        closed = asyncio.ensure_future(self.closed.wait())
        while not self.closed.is_set() and loop.time() < end:
            await asyncio.wait({closed}, timeout=min(end - loop.time(), heartbeat_s or 60))
            if heartbeat_s and loop.time() < end:
                yield Piece("", 0)
        closed.cancel()

    async def close(self) -> None:
        if not self.finish_reason:
            self.closed.set()


class FakeEngine:
    """Keeps the jobs and answers it was asked for."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.status = Status("ready", context=4096)
        self.jobs: list[Job] = []
        self.answers: list[FakeAnswer] = []
        self.drained: float | None = None
        self.worker_pid: int | None = None

    async def start(self) -> None:
        pass

    async def close(self, drain_s: float) -> None:
        self.drained = drain_s
        for answer in self.answers:
            deadline = asyncio.get_running_loop().time() + drain_s
            while not (answer.finish_reason or answer.closed.is_set()):
                if asyncio.get_running_loop().time() >= deadline:
                    answer.closed.set()
                await asyncio.sleep(0.01)

    async def submit(self, job: Job) -> FakeAnswer:
        self.jobs.append(job)
        text = job.text if job.text is not None else str((job.messages or [{}])[-1].get("content"))
        text = job.embed.texts[0] if job.embed else text
        lines = text.split("\n")
        command, _, rest = lines[0].partition(" ")
        if command == "bug":
            raise ValueError(text)
        if command in REFUSALS:
            raise REFUSALS[command]
        answer = self._answer(command, rest, lines, job)
        self.answers.append(answer)
        return answer

    async def count(self, job: Job) -> int:
        return len(str(job.text or job.messages).split())

    def _answer(self, command: str, rest: str, lines: list[str], job: Job) -> FakeAnswer:
        limit = 1 << 30 if job.max_tokens is None else job.max_tokens
        rest = rest.replace("⏎", "\n")
        prompt = sum(len(str(m["content"]).split()) for m in job.messages or []) or len((job.text or "").split())
        if job.embed:
            words = sum(len(each.split()) for each in job.embed.texts)
            return FakeAnswer([_vector(len(each), job.embed) for each in job.embed.texts], limit, words)
        if command == "say":
            return FakeAnswer(rest.split("|"), limit, prompt)
        if command == "opened":
            return FakeAnswer(rest.split("|"), limit, prompt, opened="<think>")
        if command == "slow":
            pause, _, rest = rest.partition(" ")
            return FakeAnswer(rest.split("|"), limit, prompt, pause_s=float(pause))
        if command == "hang":
            return FakeAnswer([rest] if rest else [], limit, prompt, hangs=True)
        if command in ("break", "lost"):
            error = AnswerFailed("the answer was lost: the runtime's process was ended by SIGABRT")
            return FakeAnswer([rest] if rest else [], limit, prompt, error=error)
        return FakeAnswer([f"{word} " for word in lines[0].split()], limit, prompt)


def _vector(of: int, embed: Embed) -> str:
    """Two numbers, or as many as are asked for."""
    numbers = [0.5, float(of)][: embed.dimensions]
    packed = struct.pack(f"<{len(numbers)}f", *numbers)
    return base64.b64encode(packed).decode() if embed.as_base64 else json.dumps(numbers)
