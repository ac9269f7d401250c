"""An answer as its client gets to see it: cut at stop strings or checked as JSON, with what it cost."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Optional

from rk3588.errors import Overdue, RequestRefused

from .jobs import Answer, Engine, Job
from .jsonformat import bare
from .replies import Usage
from .requests import Wanted
from .stops import StopFilter


class Reading:
    """One request's way through the engine. ``finish_reason`` and ``usage`` are final when ``texts`` has ended.

    ``close`` has to be called, whatever happened: it gives up what is still under way.
    """

    def __init__(self, engine: Engine, wanted: Wanted) -> None:
        self._engine, self._wanted = engine, wanted
        self._answer: Optional[Answer] = None
        self._spent = Usage(0, 0)
        self._tokens = 0
        self._started = time.monotonic()
        self.finish_reason = ""

    async def start(self) -> None:
        """Into the queue; what raises here raises before any header has gone out."""
        if self._wanted.format is not None:
            await self._wanted.format.check_schema()
        self._answer = await self._engine.submit(self._wanted.job)

    @property
    def usage(self) -> Usage:
        """What this request cost, both times where a JSON answer had to be given twice."""
        if self._answer is None:
            return self._spent
        return self._spent.plus(Usage(self._answer.prompt_tokens, self._tokens))

    async def close(self) -> None:
        if self._answer is not None:
            await self._answer.close()

    def texts(self, beat_s: Optional[float] = None) -> AsyncIterator[str]:
        """The answer as it comes; with ``beat_s``, "" after each so many seconds without any."""
        return self._texts(beat_s) if self._wanted.format is None else self._json(beat_s)

    async def _texts(self, beat_s: Optional[float]) -> AsyncIterator[str]:
        assert self._answer is not None
        stops = StopFilter(self._wanted.stops)
        self._tokens = 0
        async for text, tokens in self._answer.pieces(beat_s):
            self._tokens += tokens
            out = stops.feed(text)
            if out or not (text or tokens):
                yield out
            if stops.stopped:
                self.finish_reason = "stop"
                return
        self._tokens = self._answer.completion_tokens
        self.finish_reason = self._answer.finish_reason
        rest = stops.end()
        if rest:
            yield rest

    async def _json(self, beat_s: Optional[float]) -> AsyncIterator[str]:
        """Signs of life, then the whole answer once it is what was asked for; the model may try twice."""
        format = self._wanted.format
        assert format is not None
        problem: Optional[str] = None
        for attempt in range(2):
            parts = []
            async for part in self._texts(beat_s):
                parts.append(part)
                if not part:
                    yield ""
            answer = bare("".join(parts))
            problem = await format.problem(answer)
            if problem is None:
                yield answer
                return
            if self.finish_reason == "length":
                raise _refused(f"the answer was cut off before it was whole JSON: {problem}; allow more max_tokens")
            if attempt == 0:
                await self._again(self._wanted.again(answer, problem))
        raise _refused(f"neither of the model's two answers is the JSON that was asked for: {problem}")

    async def _again(self, job: Job) -> None:
        assert self._answer is not None
        await self._answer.close()
        self._spent, self._answer = self.usage, None
        most = min(job.deadline_s or self._engine.settings.deadline_s, self._engine.settings.deadline_s)
        left = most - (time.monotonic() - self._started)
        if left <= 0:
            raise Overdue(f"the deadline of {most:.0f} s passed before the model had answered in valid JSON")
        self._answer = await self._engine.submit(replace(job, deadline_s=left))


def _refused(message: str) -> RequestRefused:
    """No server error: clients would send the request again, and it was tried twice already."""
    return RequestRefused(message, "response_format", 422, "json_refused")
