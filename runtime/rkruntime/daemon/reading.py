"""An answer as its client gets to see it: in its parts, cut at stop strings or checked, with what it cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Optional

from rk3588.errors import AnswerFailed, Overdue, QueueFull, RequestRefused
from rkruntime.thoughts import tags_of

from .answer_parts import SIGN_OF_LIFE, Part, PartReader, WholeAnswer
from .api.dialect import AnswerRequest, Usage
from .jobs import Answer, Engine, Job
from .jsonformat import Checker
from .jsonprefix import JsonPrefix


class Reading:
    """One request's way through the engine. ``finish_reason`` and ``usage`` are final when ``parts`` has ended.

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
        self._prefix = JsonPrefix()  # of an answer that has to be JSON

    async def start(self) -> None:
        """Into the queue; what raises here raises before any header has gone out."""
        format, job = self._request.format, self._request.job
        if format is not None and format.schema:
            self._check_queue_has_room()
            with self._checker.place():
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
        answer = self._answer
        return self._first_attempt.plus(Usage(answer.prompt_tokens, self._tokens, answer.durations, answer.perf))

    @property
    def place(self) -> Optional[int]:
        """How many are answered before this one begins, as the queue stands; None where nobody can say."""
        return None if self._answer is None else self._answer.place

    async def close(self) -> None:
        if self._answer is not None:
            await self._answer.close()

    async def parts(self, heartbeat_s: Optional[float] = None) -> AsyncGenerator[Part, None]:
        """The answer as it comes; with ``heartbeat_s``, a sign of life after each so many seconds without any of it."""
        calls = self._request.calls
        checked = self._request.format is not None or (calls is not None and calls.required)
        parts = self._checked(heartbeat_s) if checked else self._parts(heartbeat_s)
        latest = time.monotonic()
        async for part in parts:
            now = time.monotonic()
            # What is held back comes as signs of life, as often as tokens do.
            if part != SIGN_OF_LIFE or (heartbeat_s is not None and now - latest > 0.9 * heartbeat_s):
                latest = now
                yield part

    def _reader(self, answer: Answer) -> PartReader:
        request, calls = self._request, self._request.calls
        if request.tags is None:
            return PartReader(request.stops)
        tags = tags_of(answer.opened) or request.tags
        if calls is None:
            return PartReader(request.stops, tags, bool(answer.opened))
        return PartReader(request.stops, tags, bool(answer.opened), calls.format, calls.names)

    async def _parts(self, heartbeat_s: Optional[float]) -> AsyncGenerator[Part, None]:
        """Parts as they come, and signs of life where there are none."""
        assert self._answer is not None
        reader, calls = self._reader(self._answer), self._request.calls
        called = False
        self._tokens = 0
        async for text, tokens in self._answer.pieces(heartbeat_s):
            self._tokens += tokens
            if tokens:
                self._on_token()
            for part in reader.feed(text) or [SIGN_OF_LIFE]:
                called = called or part.call is not None
                yield part
                if part.call is not None and calls is not None and not calls.several:
                    await self._stop_run("tool_calls")
                    return
            if reader.stopped:
                self.finish_reason = "tool_calls" if called else "stop"
                return
        self._tokens = self._answer.completion_tokens
        if self._answer.finish_reason not in ("stop", "length"):
            raise AnswerFailed("the answer was lost: it ended, and nothing said why")
        for part in reader.end():
            called = called or part.call is not None
            yield part
        whole = self._answer.finish_reason == "stop"
        self.finish_reason = "tool_calls" if called and whole else self._answer.finish_reason

    async def _checked(self, heartbeat_s: Optional[float]) -> AsyncGenerator[Part, None]:
        """Thoughts and signs of life; the rest once it is what was asked for. The model may try twice."""
        problem: Optional[str] = None
        thought_in: Optional[int] = None  # the attempt whose thoughts came last
        for attempt in range(2):
            kept: list[Part] = []
            async for part in self._json(heartbeat_s) if self._request.format else self._parts(heartbeat_s):
                if part.text or part.call:
                    kept.append(part)
                else:
                    if part.thought:
                        if thought_in not in (None, attempt):
                            yield Part(thought="\n\n")
                        thought_in = attempt
                    yield part
            answer = WholeAnswer.of(kept)
            check = asyncio.ensure_future(self._problem(answer))
            async for beat in self._heartbeats(check, heartbeat_s):
                yield beat
            problem = check.result()
            if problem is None:
                for part in kept:
                    yield part
                return
            if self.finish_reason == "length":
                raise self._refused(
                    f"the answer was cut off before it was whole: {problem}; allow more max_tokens, or, if it repeated "
                    "itself, ask otherwise"
                )
            if attempt == 0:
                await self._ask_again(self._request.corrected(answer.shown(), problem))
        raise self._refused(f"neither of the model's two answers is what was asked for: {problem}")

    async def _json(self, heartbeat_s: Optional[float]) -> AsyncGenerator[Part, None]:
        """The parts of an answer whose text is the JSON alone; what follows it is not waited for."""
        assert self._request.format is not None
        prefix = self._prefix = JsonPrefix(self._request.format.is_object)
        parts = self._parts(heartbeat_s)
        called = False
        async for part in parts:
            if called and part.text:  # behind a call there is no JSON any more, and nobody asked for anything else
                if not part.text.strip():
                    continue
                await parts.aclose()
                await self._stop_run("tool_calls")
                return
            called = called or part.call is not None
            prefix.feed(part.text)
            if prefix.problem or prefix.whole:
                break
            yield SIGN_OF_LIFE if part.text else part
        await parts.aclose()
        if prefix.problem or prefix.whole:
            await self._stop_run("stop")
        if prefix.text:
            yield Part(prefix.text)

    async def _problem(self, answer: WholeAnswer) -> Optional[str]:
        """What is wrong with an answer; None if nothing is."""
        format, calls = self._request.format, self._request.calls
        if format is None:
            assert calls is not None
            return await calls.problem(answer.calls, self._checker)
        if answer.calls:  # instead of the JSON
            return None
        return self._prefix.problem or await format.problem(answer.text, self._checker)

    async def _stop_run(self, reason: str) -> None:
        """The answer is whole, or cannot become what was asked for: the NPU is for others."""
        assert self._answer is not None
        await self._answer.close()
        self.finish_reason = reason

    async def _heartbeats(self, check: asyncio.Future[Any], heartbeat_s: Optional[float]) -> AsyncIterator[Part]:
        """Wait for ``check`` as long as the deadline allows, with a sign of life every ``heartbeat_s`` seconds."""
        try:
            while not check.done():
                left = self._seconds_left()
                await asyncio.wait({check}, timeout=left if heartbeat_s is None else min(left, heartbeat_s))
                if not check.done():
                    yield SIGN_OF_LIFE
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
            raise Overdue(f"the deadline of {most:.0f} s passed before the model had answered as asked")
        return left

    def _refused(self, message: str) -> RequestRefused:
        """No server error: clients would send the request again, and it was tried twice already."""
        if self._request.format is None:
            return RequestRefused(message, "tool_choice", 422, "call_refused")
        return RequestRefused(message, self._request.format.field, 422, "json_refused")
