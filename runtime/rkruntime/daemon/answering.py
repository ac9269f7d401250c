"""The endpoints that answer, in any language: a body in; an object, or a stream until the client has had enough."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from rk3588.errors import RequestRefused, RkError, Unavailable

from . import logs
from .answer_parts import SIGN_OF_LIFE, WholeAnswer
from .api.dialect import AnswerRequest, Endpoint, FindModel, Reply, Usage
from .config import Config
from .fields import parse_json
from .figures import Figures, Timing
from .jobs import Engine
from .jsonformat import Checker
from .keys import Keys, shown_in
from .places import Places
from .reading import Reading
from .withoutpaths import without_paths_in

GRACE_S = 60.0  # after the deadline, for a client that reads slowly
COMMENTS_HEADER = "x-rk-sse-comments"
IGNORED_HEADER = "x-rk-ignored"
DEADLINE_HEADER = "x-rk-deadline-s"
DEADLINE_PATTERN = r"(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,3})?"  # seconds above 0


class ClientGone(Exception):
    """The client has closed the connection."""


class Answering:
    """An ASGI application for one endpoint, whose language reads the requests and shapes the answers."""

    def __init__(
        self,
        engine: Engine,
        config: Config,
        keys: Keys,
        find: FindModel,
        endpoint: Endpoint,
        figures: Figures,
        places: Places,
        checker: Checker,
    ) -> None:
        self._engine, self._config, self._keys, self._find = engine, config, keys, find
        self._endpoint, self.path, self._figures, self._places = endpoint, endpoint.path, figures, places
        self._checker = checker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or stop at once when the client goes or reads so slowly that the deadline is long past."""
        headers = Headers(scope=scope)
        facts: dict[str, Any] = scope["state"]["facts"]
        owner = facts["key"] = self._keys.owner(shown_in(headers)) or None
        body = await read_body(headers, receive, self._config.max_body_kb << 10)
        request = self._endpoint.read(parse_json(body), self._config, self._find, owner or "")
        request = replace(request, job=replace(request.job, deadline_s=deadline_of(headers)))
        facts.update(model=request.model, stream=request.stream)
        work = self._answer(request, headers, scope, receive, send)
        await while_there(work, receive, facts, self._config.deadline_s + GRACE_S)

    async def _answer(
        self, request: AnswerRequest, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        facts = scope["state"]["facts"]
        timing = Timing(self._figures)
        reading = Reading(self._engine, request, self._checker, timing.first_token)
        reply = self._endpoint.reply(request.model)
        if not request.runs:
            return await self._say_it_is_there(request, reply)(scope, receive, send)
        self._places.add(facts["request_id"], reading)
        try:
            await reading.start()
            extra = self._ignored(request)
            if request.stream:
                comment = self._config.sse_comments or headers.get(COMMENTS_HEADER) == "1"
                stream = self._stream(reading, reply, request.include_usage, comment, facts)
                await _send_stream(stream, {"content-type": reply.stream_type, **extra}, send)
            else:
                answer = WholeAnswer.of([part async for part in reading.parts()])
                body = reply.whole(answer, reading.finish_reason, reading.usage)
                await JSONResponse(body, headers=extra)(scope, receive, send)
            if "error" not in facts:  # else a stream has begun, and could not go on
                facts.setdefault("ended", reading.finish_reason or None)
        finally:
            self._places.remove(facts["request_id"], reading)
            await reading.close()
            usage = reading.usage
            timed = timing.end(usage.prompt, usage.completion, usage.durations)
            facts.update(prompt_tokens=usage.prompt, completion_tokens=usage.completion, **timed)

    def _say_it_is_there(self, request: AnswerRequest, reply: Reply) -> JSONResponse:
        """To a client that asks for the model to be loaded: it is, or will be; Unavailable if it cannot be."""
        status = self._engine.status
        if status.state not in ("ready", "loading"):
            raise Unavailable(status.reason)
        return JSONResponse(reply.whole(WholeAnswer(""), "load", Usage(None, 0)), headers=self._ignored(request))

    def _ignored(self, request: AnswerRequest) -> dict[str, str]:
        return ignored_header(request.ignored, request.context, self._engine.status.context)

    async def _stream(
        self, reading: Reading, reply: Reply, include_usage: bool, comment: bool, facts: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        """The stream; its first part comes with the answer's first sign of life, an error before that is raised."""
        started = False
        try:
            async for part in reading.parts(self._config.keep_alive_s):
                head = b"" if started else reply.begin()
                started = True
                yield head + (reply.sign_of_life(comment) if part == SIGN_OF_LIFE else reply.part(part))
        except RkError as error:
            if not started:
                raise
            yield self._broken_off(reply, error, facts)
            return
        except Exception:
            if not started:
                raise
            # A defect: the stream must not look whole.
            logs.event("unexpected error", logging.ERROR, exc_info=True, request_id=facts.get("request_id"))
            unexpected = RkError("an unexpected error: the daemon's log has more under this id")
            yield self._broken_off(reply, unexpected, facts)
            return
        head = b"" if started else reply.begin()
        yield head + reply.end(reading.finish_reason, reading.usage if include_usage else None)

    def _broken_off(self, reply: Reply, error: RkError, facts: dict[str, Any]) -> bytes:
        """The last of a stream that cannot go on."""
        failure = self._endpoint.failure(error)
        facts["error"] = failure.code
        if failure.status >= 500 and not facts.get("key"):
            failure = failure._replace(body=without_paths_in(failure.body, self._config))
        return reply.broken_off(failure)


def ignored_header(ignored: Sequence[str], asked_context: Optional[int], context: int) -> dict[str, str]:
    """The header that names what has no effect; ``context`` is the model's, 0 where it is not known yet."""
    differs = asked_context is not None and context and asked_context != context
    names = (*ignored, *(("num_ctx",) if differs else ()))
    return {IGNORED_HEADER: ", ".join(names)} if names else {}


async def while_there(work: Coroutine[Any, Any, None], receive: Receive, facts: dict[str, Any], most_s: float) -> None:
    """Do ``work``, but end it and raise ClientGone when the client goes, or reads so slowly that ``most_s`` is past."""
    done = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({done, gone}, timeout=most_s, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        facts.setdefault("ended", "client gone" if gone.done() else "client too slow")
    finally:
        for task in (done, gone):
            task.cancel()
        await asyncio.gather(done, gone, return_exceptions=True)
    raise ClientGone


async def _send_stream(stream: AsyncIterator[bytes], headers: Mapping[str, str], send: Send) -> None:
    started = False
    async for part in stream:
        if not started:
            started = True
            # The last one is for nginx, which else holds a stream back until it has a buffer full.
            kept = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            await send(_start(200, {**headers, **kept}))
        await send({"type": "http.response.body", "body": part, "more_body": True})
        # Neither side need have waited: let others have a turn, and the end of a connection be noticed.
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def deadline_of(headers: Headers) -> Optional[float]:
    """Seconds that the client would wait; None where it does not say."""
    text = headers.get(DEADLINE_HEADER)
    if text is None:
        return None
    if not re.fullmatch(DEADLINE_PATTERN, text):
        raise RequestRefused(f"the header {DEADLINE_HEADER} has to be a number of seconds above 0", DEADLINE_HEADER)
    return float(text)


async def read_body(headers: Headers, receive: Receive, most: int) -> bytes:
    """The whole body; RequestRefused if it is too large. (The gate ends what is too slow.)"""
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.extend(message.get("body", b""))
        if len(parts) > most:
            raise _too_large(most)
        if not message.get("more_body"):
            return bytes(parts)


def _too_large(most: int) -> RequestRefused:
    return RequestRefused(f"the body is larger than {most >> 10} KiB, all that this server takes", status=413)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: Mapping[str, str]) -> Message:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}
