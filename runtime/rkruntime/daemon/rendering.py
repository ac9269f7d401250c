"""Chat templates rendered in a process that may be lost: they are programs, and come with models from anywhere.

``Renderer`` forks a keeper before the worker has threads. The keeper forks a child, which renders, with little time and
memory; a template that takes more ends it, which refuses that one request, and the keeper forks another.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Optional

from rk3588.errors import BundleError, RkError
from rk3588.templates import ChatTemplate, Message, Rendered, Source

from .protocol import Channel, Frame, pack


class Limits(NamedTuple):
    """For one rendering. Together with a prompt's encoding it has to stay below the daemon's patience."""

    cpu_s: float = 5.0
    wall_s: float = 10.0
    memory: int = 512 << 20  # bytes, above what the process has anyway
    characters: int = 8 << 20  # of the result


class RendererLost(BaseException):
    """The keeper is gone: nothing can be rendered any more, and whoever has the worker starts another."""


class Renderer:
    """ChatTemplate's ``conversation``, within limits. ``not_theirs`` are sockets that the keeper must not hold."""

    def __init__(self, *not_theirs: socket.socket, limits: Optional[Limits] = None) -> None:
        ours, theirs = socket.socketpair()
        self._busy = mmap.mmap(-1, 1)  # shared with the keeper: whether somebody waits for an answer
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                for end in (ours, *not_theirs):
                    end.close()
                _close_output()
                _restart_renderers(Channel(theirs), limits or Limits(), self._busy)
            finally:
                os._exit(0)
        theirs.close()
        self._end, self._channel = ours, Channel(ours)

    def render(
        self, source: Source, messages: Sequence[Message], variables: Mapping[str, Any], system_role: str
    ) -> Rendered:
        """BundleError if the template refuses the conversation, or takes too long or too much for it."""
        self._busy[0] = 1
        try:
            self._channel.send(
                source=source, messages=list(messages), variables=dict(variables), system_role=system_role
            )
            frame = self._channel.receive()
        except ConnectionError:
            frame = None
        if frame is None:
            raise RendererLost("the process that renders chat templates is gone")
        if "refused" in frame:
            raise BundleError(frame["refused"])
        return Rendered(str(frame["text"]), tuple(map(str, frame["notes"])))

    def close(self) -> None:
        """End the keeper."""
        self._end.close()
        os.waitpid(self._pid, 0)


def _close_output() -> None:
    """A pipe of the worker's that stays open here would look as if the worker still lived."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (1, 2):
        os.dup2(nothing, standard)


def _restart_renderers(channel: Channel, limits: Limits, busy: mmap.mmap) -> None:
    """A child that renders, and another where one was ended by a limit, until the worker is gone."""
    while True:
        pid = os.fork()
        if pid == 0:
            _render_until_closed(channel, limits, busy)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            return
        if busy[0]:
            busy[0] = 0
            channel.send(refused="the chat template takes too long for this conversation, or too much memory")


def _render_until_closed(channel: Channel, limits: Limits, busy: mmap.mmap) -> None:
    """In the child: one conversation after the other, until the worker is gone."""
    try:
        _limit_memory(limits)
        compiled: dict[str, ChatTemplate] = {}
        while (frame := channel.receive()) is not None:
            signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
            signal.setitimer(signal.ITIMER_REAL, limits.wall_s)
            answer = _answer(compiled, frame, limits)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            busy[0] = 0
            channel.send_packed(answer)
    finally:
        os._exit(0)


def _answer(compiled: dict[str, ChatTemplate], frame: Frame, limits: Limits) -> bytes:
    """The frame with the text, or with why there is none."""
    source = Source(*frame["source"])
    try:
        if source.text not in compiled:
            compiled.clear()
            compiled[source.text] = ChatTemplate(*source)
        template = compiled[source.text]
        text, notes = template.conversation(frame["messages"], frame["variables"], frame["system_role"])
        if len(text) > limits.characters:
            raise BundleError(f"{source.where} makes more than {limits.characters} characters of this conversation")
        return pack({"text": text, "notes": notes})
    except RkError as error:
        return pack({"refused": str(error)})
    except MemoryError:
        return pack({"refused": f"{source.where} takes too much memory for this conversation"})


def _limit_memory(limits: Limits) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + limits.memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
