"""Conversations in a model's chat template, rendered in a child process with little time and memory.

The template is a program that comes with models from anywhere: a loop in it, or a number without end that is computed
when it is compiled, must not hold up whoever converts the model.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from rk3588 import children
from rk3588.errors import BundleError
from rk3588.templates import ChatTemplate

WHERE = "the model's chat template"
_CPU_S, _WALL_S, _MEMORY, _MOST = 5.0, 30.0, 1 << 30, 8 << 20  # of one conversation; the last: characters of its text

Message = Mapping[str, str]


class Renderer:
    """``with Renderer(source, tokens) as render: render(messages)``; BundleError where the template refuses it."""

    def __init__(self, source: str, tokens: Mapping[str, str | None]) -> None:
        child = children.python(__name__)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(child.command, env=child.environment, stdin=pipe, stdout=pipe)
        self._send({"source": source, "tokens": dict(tokens)})

    def __call__(self, messages: Sequence[Message]) -> str:
        assert self._process.stdout is not None
        timer = threading.Timer(_WALL_S, self._process.kill)
        timer.start()
        try:
            self._send(list(messages))
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            raise BundleError(f"{WHERE} takes too long, or too much memory")
        said = json.loads(line)
        if "refused" in said:
            raise BundleError(str(said["refused"]))
        return str(said["text"])

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it was ended, which its answer shows
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()


def _answer(template: ChatTemplate, messages: list[Message]) -> dict[str, str]:
    text = template.conversation(messages).text
    if len(text) > _MOST:
        return {"refused": f"{WHERE} makes more than {_MOST} characters of this conversation"}
    return {"text": text}


def main() -> None:
    """The child: a template on the first line, a conversation on each that follows, and a line for each of these."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal it is for whoever started this
    given, template = json.loads(sys.stdin.buffer.readline()), None
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, _CPU_S)  # which ends the process
        try:
            template = template or ChatTemplate(given["source"], given["tokens"], WHERE)
            said = _answer(template, json.loads(line))
        except BundleError as error:
            said = {"refused": str(error)}
        except MemoryError:
            said = {"refused": f"{WHERE} takes too much memory for this conversation"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
