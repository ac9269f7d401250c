"""An answer as its client gets to see it: cut at stop strings or checked as JSON, with what it cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Optional

from rk3588.errors import AnswerFailed, Overdue, QueueFull, RequestRefused

from .api.dialect import AnswerRequest, Usage
from .jobs import Answer, Engine, Job
from .jsonformat import Checker
from .jsonprefix import JsonPrefix
from .stops import StopFilter


class Reading:
    """One request's way through the engine. ``finish_reason`` and ``usage`` are final when ``texts`` has ended.

    ``close`` has to be called, whatever happened: it gives up what is still under way.
    """

    def __init__(
        self,
        engine: Engine,
        request: AnswerRequest,
        checker: Checker,
        on_token: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._request, self._checker, self._on_token = engine, request, checker, on_token
        self._answer: Optional[Answer] = None
        self._first_attempt = Usage(0, 0)
        self._tokens = 0
        self._started = time.monotonic()
        self.finish_reason = ""

    async def start(self) -> None:
        """Into the queue; what raises here raises before any header has gone out."""
        format, job = self._request.format, self._request.job
        if format is not None and format.schema:
            self._check_queue_has_room()
            check = asyncio.ensure_future(format.check_schema(self._checker))
            async for _ in self._heartbeats(check, None):
                pass
            check.result()
            job = replace(job, deadline_s=self._seconds_left())
        self._answer = await self._engine.submit(job)

    def _check_queue_has_room(self) -> None:
        """A schema that is checked has a place in the queue, too."""
        waiting = self._checker.waiting + self._engine.status.queued
        if waiting >= self._engine.settings.queue_length:
            raise QueueFull(f"{waiting} requests are waiting already: try again in a few seconds", 5)

    @property
    def usage(self) -> Usage:
        """What this request cost, both times where a JSON answer had to be given twice."""
        if self._answer is None:
            return self._first_attempt
        return self._first_attempt.plus(Usage(self._answer.prompt_tokens, self._tokens, self._answer.durations))

    @property
    def place(self) -> Optional[int]:
        """How many are answered before this one begins, as the queue stands; None where nobody can say."""
        return None if self._answer is None else self._answer.place

    async def close(self) -> None:
        if self._answer is not None:
            await self._answer.close()

    def texts(self, heartbeat_s: Optional[float] = None) -> AsyncIterator[str]:
        """The answer as it comes; with ``heartbeat_s``, "" after each so many seconds without any."""
        return self._texts(heartbeat_s) if self._request.format is None else self._json(heartbeat_s)

    async def _texts(self, heartbeat_s: Optional[float]) -> AsyncGenerator[str, None]:
        assert self._answer is not None
        stops = StopFilter(self._request.stops)
        self._tokens = 0
        async for text, tokens in self._answer.pieces(heartbeat_s):
            self._tokens += tokens
            if tokens:
                self._on_token()
            out = stops.feed(text)
            if out or not (text or tokens):
                yield out
            if stops.stopped:
                self.finish_reason = "stop"
                return
        self._tokens = self._answer.completion_tokens
        if self._answer.finish_reason not in ("stop", "length"):
            raise AnswerFailed("the answer was lost: it ended, and nothing said why")
        self.finish_reason = self._answer.finish_reason
        rest = stops.end()
        if rest:
            yield rest

    async def _json(self, heartbeat_s: Optional[float]) -> AsyncIterator[str]:
        """Signs of life, then the whole answer once it is what was asked for; the model may try twice."""
        format = self._request.format
        assert format is not None
        problem: Optional[str] = None
        for attempt in range(2):
            prefix = JsonPrefix(format.is_object)
            texts = self._texts(heartbeat_s)
            async for part in texts:
                prefix.feed(part)
                if prefix.problem or prefix.whole:
                    break
                if not part:
                    yield ""
            await texts.aclose()
            if prefix.problem or prefix.whole:
                await self._stop_run()
            problem = prefix.problem
            if problem is None:
                check = asyncio.ensure_future(format.problem(prefix.text, self._checker))
                async for beat in self._heartbeats(check, heartbeat_s):
                    yield beat
                problem = check.result()
            if problem is None:
                yield prefix.text
                return
            if self.finish_reason == "length":
                raise self._refused(
                    f"the answer was cut off before it was whole JSON: {problem}; allow more max_tokens, or, if it "
                    "repeated itself, ask otherwise"
                )
            if attempt == 0:
                await self._ask_again(self._request.corrected(prefix.text, problem))
        raise self._refused(f"neither of the model's two answers is the JSON that was asked for: {problem}")

    async def _stop_run(self) -> None:
        """The answer is whole, or cannot become what was asked for: the NPU is for others."""
        assert self._answer is not None
        await self._answer.close()
        self.finish_reason = "stop"

    async def _heartbeats(self, check: asyncio.Future[Any], heartbeat_s: Optional[float]) -> AsyncIterator[str]:
        """Wait for ``check`` as long as the deadline allows, with a sign of life every ``heartbeat_s`` seconds."""
        try:
            while not check.done():
                left = self._seconds_left()
                await asyncio.wait({check}, timeout=left if heartbeat_s is None else min(left, heartbeat_s))
                if not check.done():
                    yield ""
        finally:
            check.cancel()
            await asyncio.gather(check, return_exceptions=True)

    async def _ask_again(self, job: Job) -> None:
        assert self._answer is not None
        await self._answer.close()
        self._first_attempt, self._answer = self.usage, None
        self._answer = await self._engine.submit(replace(job, deadline_s=self._seconds_left()))

    def _seconds_left(self) -> float:
        """Seconds until the deadline; Overdue if there are none."""
        most = self._engine.settings.deadline_s
        most = min(self._request.job.deadline_s or most, most)
        left = most - (time.monotonic() - self._started)
        if left <= 0:
            raise Overdue(f"the deadline of {most:.0f} s passed before the model had answered in valid JSON")
        return left

    def _refused(self, message: str) -> RequestRefused:
        """No server error: clients would send the request again, and it was tried twice already."""
        assert self._request.format is not None
        return RequestRefused(message, self._request.format.field, 422, "json_refused")
