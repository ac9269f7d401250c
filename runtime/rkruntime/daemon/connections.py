"""Connections that cost something: as many as there are descriptors for, none that waits or is waited for without end.

uvicorn bounds the silence after an answer; the rest is here. Nothing that a client does on a connection makes more
than one line in the log.
"""

from __future__ import annotations

import http
import json
import logging
import resource
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Optional, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rk3588.errors import RequestRefused, RkError, Unavailable

from . import logs
from .api import openai
from .config import Config

ACCEPTS = 16  # connections that asyncio takes at a time, before any of them is looked at
RESERVED = 64  # descriptors for ACCEPTS, a worker that is started, schema checks, files
_FEWEST = 8  # connections, however few descriptors there are
_BODY_GRACE_S = 1.0  # for a body that comes, before its connection may have to make room
_RETRY_S = 5
_TLS_HANDSHAKE = b"\x16\x03"
_HTTP2_PREFACE = b"PRI * HTTP/2.0"


class Limits(NamedTuple):
    connections: int
    header_s: float  # for the head of a request
    send_s: float  # for a client that reads nothing


def limits_of(config: Config) -> Limits:
    """The settings, with no more connections than this process may open descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = config.max_connections
    if soft != resource.RLIM_INFINITY:
        most = min(most, max(soft - RESERVED, _FEWEST))
    return Limits(most, config.header_s, config.send_s)


def allow_descriptors() -> None:
    """Let this process open as many files as it may at all: many systems begin with 1,024 and allow far more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def protocol(limits: Limits) -> type[H11Protocol]:
    """The class that uvicorn makes one of for each connection."""

    class Limited(Connection):
        pass

    Limited.limits = limits
    return Limited


def check_all(connections: Iterable[Any], now: float) -> None:
    """To be called every now and then: ends what is overdue."""
    for connection in list(connections):
        cast(Connection, connection).check(now)


class Connection(H11Protocol):
    """uvicorn's, with an end to every wait."""

    limits: Limits

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        now = self.loop.time()
        self._doing: tuple[str, Any] = ("head", None)
        self._since = now  # it does this
        self._unsent, self._took_at = 0, now  # what the client has not taken yet, and when it last took some
        self._is_closing = False
        self._close_idlest_if_full(now)

    def data_received(self, data: bytes) -> None:
        if self.cycle is None and not self.conn.trailing_data[0]:  # the first that this client says
            if data.startswith(_TLS_HANDSHAKE):
                self._log("not HTTP", "it spoke TLS: this port speaks http://, not https://")
                self._close_now()
                return
            if data.startswith(_HTTP2_PREFACE):
                self._log("not HTTP", "it spoke HTTP/2 without asking: this port speaks HTTP/1.1")
                self._refuse(505, RequestRefused("this server speaks HTTP/1.1, not HTTP/2", status=505))
                return
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this in its handler of an error of h11, which knows more."""
        error = sys.exc_info()[1]
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if hint == 431:
            what = "the head of this request is too large: 16 KiB is all that this server takes"
        else:
            what = f"this is not a request of HTTP/1.1: {str(error or msg)[:200]}"
        self._refuse(hint, RequestRefused(what, status=hint))

    def _unsupported_upgrade_warning(self) -> None:
        """curl and Java ask for HTTP/2 with every request; they are answered in HTTP/1.1, which is no news."""

    def shutdown(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def check(self, now: float) -> None:
        """End what is overdue: a head that does not come, an answer that nobody reads."""
        unsent, closing = self.transport.get_write_buffer_size(), self.transport.is_closing()
        if not closing and (unsent == 0 or unsent < self._unsent):
            self._took_at = now
        self._unsent = unsent
        if now - self._took_at > self.limits.send_s:
            self._log("client dropped", f"it read nothing for {self.limits.send_s:g} s")
            self.transport.abort()
            return
        self._renew(now)
        if self._doing[0] == "head" and now - self._since > self.limits.header_s and not closing:
            self._end_overdue()

    def _renew(self, now: float) -> None:
        """Keep since when it does what it does."""
        doing = self._activity()
        if doing != self._doing:
            self._doing, self._since = doing, now

    def _activity(self) -> tuple[str, Any]:
        """What goes on here, and for which request: ``work``; ``kept`` for the next one; ``head``, waiting for that."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            return "work", cycle
        # uvicorn's timer runs from the end of an answer to the next byte. h11 is idle only after a whole request.
        kept = self.timeout_keep_alive_task is not None and self.conn.their_state is h11.IDLE
        return ("kept" if kept else "head"), cycle

    def _end_overdue(self) -> None:
        begun = self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]
        if not begun:  # nothing at all, as from browsers that connect in advance; or the rest of what was refused
            self._close_now()
            return
        seconds = f"{self.limits.header_s:g} s"
        self._log("client dropped", f"the head of its request did not come within {seconds}")
        self._refuse(408, RequestRefused(f"the head of the request did not arrive within {seconds}", status=408))

    def _close_idlest_if_full(self, now: float) -> None:
        """Where there are too many: the one that has waited longest goes; if all are at work, this one."""
        others = [c for c in cast("set[Connection]", self.connections) if c is not self and not c._is_closing]
        if len(others) < self.limits.connections:
            return
        for each in others:
            each._renew(now)  # what began since the last check is not as old as what was before
        waiting = [c for c in others if c._can_be_closed(now)]
        reason = f"all {self.limits.connections} connections are taken"
        if waiting:
            idlest = min(waiting, key=lambda c: c._since)
            idlest._log("client dropped", f"{reason}, and this one had waited longest")
            idlest._close_now()
        else:
            self._log("client refused", reason)
            self._refuse(503, Unavailable(f"{reason}: try again later", retry_after_s=_RETRY_S))

    def _can_be_closed(self, now: float) -> bool:
        """Whether no whole request would be lost with it."""
        doing, cycle = self._activity()
        return doing != "work" or (cycle.more_body and now - self._since > _BODY_GRACE_S)

    def _close_now(self) -> None:
        self._is_closing = True
        if self.transport.get_write_buffer_size() or self._activity()[0] == "work":
            self.transport.abort()
        else:
            self.transport.close()

    def _refuse(self, status: int, error: RkError) -> None:
        """Say why, unless an answer is under way already, and close. uvicorn has no request to answer here."""
        if self._activity()[0] == "work" and self.cycle.response_started:
            self._close_now()
            return
        self._is_closing = True
        failure = openai.failure(error)
        body = json.dumps(failure.body).encode()
        headers: Mapping[str, str] = {
            **failure.headers,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(head.encode("latin-1") + b"\r\n" + body)
        self.transport.close()

    def _log(self, event: str, reason: str) -> None:
        client: Optional[str] = self.client[0] if self.client else None
        logs.event(event, logging.WARNING, reason=reason, client=client)
