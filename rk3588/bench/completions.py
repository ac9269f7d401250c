"""A client of ``/v1/completions`` that measures, and believes nothing: bounded in bytes, lines and time.

The standard library alone: it runs on boards, too.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

from rk3588.errors import BenchError, UsageError, printable

_MOST_BODY = 4 << 20  # bytes of an answer that is no stream
_MOST_LINE = 1 << 20  # bytes of one event
_MOST_OF_TOKEN = 16 << 10  # bytes of a stream for each token that was asked for
_CONNECT_S = 15.0
_REQUEST_S = 60.0  # for what runs no model
_BURST_NS = 200_000  # between pieces that were waiting to be read; a board needs 10 ms and more for a token
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")


class Answer(NamedTuple):
    """Times in ns since the request was sent. None: not told by this server."""

    first_ns: int  # to the first text, or to the end of an answer without any
    last_ns: int  # to the last text
    pieces: int  # with text in them
    burst: int  # of these, those that came at once with the first, as on a busy machine
    burst_ns: int  # when the last of them came
    finish_reason: str
    prompt_tokens: Optional[int]
    tokens: Optional[int]
    cached_tokens: Optional[int]  # of the prompt, which were not computed
    prefill_ns: Optional[int]  # the server's own figure


class Refused(BenchError):
    """An HTTP status that is none of success; ``status`` tells which."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Server:
    """One server by its URL, with or without ``/v1`` at its end; each request has a connection of its own."""

    def __init__(self, url: str, key: Optional[str], seconds: float) -> None:
        self.url = _checked_url(url)
        parts = urllib.parse.urlsplit(self.url)
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/")
        self._seconds = seconds
        if key is not None and not _KEY.fullmatch(key):
            raise UsageError("--key: that is no API key: it has to be printable ASCII without spaces")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        # Fields beyond OpenAI's, which some servers heed, and a few refuse.
        self._extra: dict[str, Any] = {"ignore_eos": True, "cache_prompt": False}

    def get(self, path: str) -> Any:
        """JSON; Refused where there is none."""
        return self._whole("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._whole("POST", path, body)

    def _whole(self, method: str, path: str, body: Optional[dict[str, Any]]) -> Any:
        with self._asked(method, path, body, _REQUEST_S) as (reply, _):
            raw = reply.read(_MOST_BODY + 1)
            if len(raw) > _MOST_BODY:
                raise BenchError(f"{self.url}{path} answers with more than {_MOST_BODY >> 20} MB: is it such a server?")
            return _parsed(raw, f"{self.url}{path}")

    def complete(self, model: Optional[str], prompt: str, most: int) -> Answer:
        """One answer of at most ``most`` tokens, as a stream."""
        body: dict[str, Any] = {
            "prompt": prompt, "max_tokens": most, "stream": True, "stream_options": {"include_usage": True},
            "temperature": 0, **({"model": model} if model else {}),
        }  # fmt: skip
        try:
            return self._stream({**body, **self._extra}, most)
        except Refused as error:
            if not self._extra or error.status not in (400, 422):
                raise
        self._extra = {}
        return self._stream(body, most)

    def _stream(self, body: dict[str, Any], most: int) -> Answer:
        with self._asked("POST", "/v1/completions", body, self._seconds) as (reply, started):
            reading = _Reading(self.url, started, most, len(body["prompt"].encode()))
            for line in self._lines(reply, (4 << 20) + most * _MOST_OF_TOKEN):
                if not reading.take(line):
                    break
            return reading.answer()

    def _lines(self, reply: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
        read = 0
        while line := reply.readline(_MOST_LINE + 1):
            read += len(line)
            if len(line) > _MOST_LINE:
                raise BenchError(f"{self.url} sends a line of more than {_MOST_LINE >> 20} MB: no token is so long")
            if read > most:
                raise BenchError(f"{self.url} sends more than {most >> 20} MB for one answer, beyond max_tokens")
            yield line.strip()

    @contextmanager
    def _asked(
        self, method: str, path: str, body: Optional[dict[str, Any]], seconds: float
    ) -> Iterator[tuple[http.client.HTTPResponse, int]]:
        """The beginning of a good answer, and when the request was sent. After ``seconds`` the connection is cut."""
        connection = self._connect()
        late = threading.Event()

        def cut() -> None:
            late.set()
            with contextlib.suppress(OSError, ValueError):
                door.shutdown(socket.SHUT_RDWR)

        try:
            door = self._opened(connection)
            timer = threading.Timer(seconds, cut)
            timer.daemon = True
            timer.start()
            try:
                started = time.perf_counter_ns()
                raw = None if body is None else json.dumps(body).encode()
                connection.request(method, self._path + path, raw, self._headers)
                reply = connection.getresponse()
                with reply:
                    self._check_status(reply, path)
                    yield reply, started
            except (OSError, http.client.HTTPException, ValueError, BenchError) as error:
                if late.is_set():
                    raise self._too_late(seconds) from error
                if isinstance(error, BenchError):
                    raise
                raise BenchError(f"{self.url} broke off the answer to {path}: {_reason(error)}") from error
            finally:
                timer.cancel()
        finally:
            connection.close()

    def _too_late(self, seconds: float) -> BenchError:
        return BenchError(f"{self.url} was not done within {seconds:g} s: --timeout allows more")

    def _connect(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_S)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=_CONNECT_S, context=ssl.create_default_context()
        )

    def _opened(self, connection: http.client.HTTPConnection) -> socket.socket:
        try:
            connection.connect()
        except ssl.SSLError as error:
            raise BenchError(f"{self.url} cannot be spoken to over TLS: {_reason(error)}") from error
        except (OSError, ValueError) as error:
            raise BenchError(f"nothing answers at {self.url}: {_reason(error)}; is the server running?") from error
        found: socket.socket = connection.sock
        found.settimeout(None)  # the timer bounds all of it
        return found

    def _check_status(self, reply: http.client.HTTPResponse, path: str) -> None:
        status = reply.status
        if 200 <= status < 300:
            return
        where = f"{self.url}{path}"
        if 300 <= status < 400:
            target = printable((reply.getheader("location") or "somewhere else")[:200])
            raise Refused(f"{where} leads to {target}, which is not followed: give the server's own URL", status)
        said = _message(reply.read(64 << 10))
        if status in (401, 403):
            raise Refused(f"{where} wants a key: {said}; give --key KEY", status)
        raise Refused(f"{where} answered {status}: {said}", status)


def _checked_url(url: str) -> str:
    """Without a slash or ``/v1`` at its end."""
    try:
        parts = urllib.parse.urlsplit(url)
        bad = parts.port == 0 or not parts.hostname or parts.scheme not in ("http", "https")
    except ValueError:
        bad = True
    if bad or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"{printable(url[:200])} is no URL of a server: give one such as http://127.0.0.1:8080")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            f"a URL with a user, a query or a fragment is none of a server: give http://{parts.hostname}, and --key KEY"
        )
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path[:-3] if path.endswith('/v1') else path}"


def _reason(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(reason).split())[:200])


def _parsed(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        shown = printable(raw[:60].decode("utf-8", "replace"))
        raise BenchError(f"{where} answers with no JSON but {shown!r}: is it a server of OpenAI's API?") from error


def _message(raw: bytes) -> str:
    """What an error says, in any of the usual shapes."""
    text = raw.decode("utf-8", "replace")
    said: Any = text
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(text)
    for key in ("error", "message", "detail"):
        said = said[key] if isinstance(said, dict) and key in said else said
    return printable(" ".join(str(said).split())[:300]) or "nothing more"


class _Reading:
    """A stream of events, as it comes."""

    def __init__(self, url: str, started: int, most: int, prompt_bytes: int) -> None:
        self._url, self._started, self._most, self._prompt_bytes = url, started, most, prompt_bytes
        self._first = self._last = self._ended = 0
        self._pieces, self._finish, self._done = 0, "", False
        self._burst, self._burst_ns = 0, 0
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}

    def take(self, line: bytes) -> bool:
        """Whether there may be more."""
        now = time.perf_counter_ns() - self._started
        if not line.startswith(b"data:"):
            if line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                shown = printable(line[:60].decode("utf-8", "replace"))
                raise BenchError(f"{self._url} answers with no stream but {shown!r}: is it a server of OpenAI's API?")
            return True
        data = line[5:].strip()
        if data == b"[DONE]":
            self._ended, self._done = now, True
            return False
        self._event(_parsed(data, self._url), now)
        return True

    def _event(self, event: Any, now: int) -> None:
        if not isinstance(event, dict):
            raise BenchError(f"{self._url} sends an event that is no object: is it a server of OpenAI's API?")
        if event.get("error"):
            raise BenchError(f"{self._url} broke off the answer: {_message(json.dumps(event).encode())}")
        self._ended = now
        for name, kept in (("usage", self._usage), ("timings", self._timings)):
            if isinstance(event.get(name), dict):
                kept.update(event[name])
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        if not isinstance(choice, dict):
            raise BenchError(f"{self._url} sends choices that are no objects: is it a server of OpenAI's API?")
        if isinstance(choice.get("finish_reason"), str):
            self._finish = choice["finish_reason"][:40]
        if isinstance(choice.get("text"), str) and choice["text"]:
            self._text_came(now)

    def _text_came(self, now: int) -> None:
        if self._burst == self._pieces and (not self._pieces or now - self._burst_ns < _BURST_NS):
            self._burst, self._burst_ns = self._burst + 1, now
        self._first, self._last, self._pieces = self._first or now, now, self._pieces + 1
        if self._pieces > 4 * self._most + 16:
            raise BenchError(f"{self._url} goes on beyond the {self._most} tokens that were asked for")

    def answer(self) -> Answer:
        if not (self._done or self._finish) or not self._ended:
            raise BenchError(f"{self._url} broke the stream off before the answer's end")
        tokens = self._count(self._usage, "completion_tokens", self._most, "asked for")
        if tokens is not None and self._pieces > tokens + 1:  # a last one may be the rest of a character
            told = f"says usage.completion_tokens {tokens}, and sent {self._pieces} pieces of text"
            raise BenchError(f"{self._url} {told}: it cannot be so")
        # A token is a byte of the prompt at least; what a template or the tokenizer puts before it comes on top.
        prompt = self._count(self._usage, "prompt_tokens", self._prompt_bytes + 1024, "bytes of the prompt")
        details = self._usage.get("prompt_tokens_details")
        cached = [_whole(details, "cached_tokens"), _whole(self._timings, "cache_n")]
        times = [_number(self._timings, "prompt_ms"), _number(self._usage.get("perf"), "prefill_time_ms")]
        prefill = next((round(ms * 1e6) for ms in times if ms is not None), None)
        return Answer(
            self._first or self._ended, self._last or self._ended, self._pieces, self._burst, self._burst_ns,
            self._finish, prompt, tokens, max((n for n in cached if n is not None), default=None), prefill,
        )  # fmt: skip

    def _count(self, where: dict[str, Any], name: str, most: int, of: str) -> Optional[int]:
        found = _whole(where, name)
        if found is None:
            if where.get(name) is not None:
                raise BenchError(f"{self._url} says usage.{name} {printable(repr(where[name])[:40])}: that is no count")
            return None
        if not 0 <= found <= most:
            told = f"says usage.{name} {found}, where {most} are the most ({of})"
            raise BenchError(f"{self._url} {told}: it cannot be so")
        return found


def _whole(where: Any, name: str) -> Optional[int]:
    found = where.get(name) if isinstance(where, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _number(where: Any, name: str) -> Optional[float]:
    found = where.get(name) if isinstance(where, dict) else None
    sound = isinstance(found, (int, float)) and not isinstance(found, bool) and 0 < found < 1e9
    return float(found) if sound and found is not None else None


