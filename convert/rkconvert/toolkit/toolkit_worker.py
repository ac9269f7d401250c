"""Runs inside rkllm-toolkit's own interpreter (Python 3.8 to 3.12), with nothing but the standard library.

    python toolkit_worker.py REQUESTS REPLIES

Both are file descriptors of pipes. REQUESTS carries one JSON line, ``{"calls": [[method, {argument: value}], ...]}``,
and stays open for as long as the caller lives. REPLIES gets JSON lines:

    {"event": "ready", "version": ..., "python": ...}     rkllm.api is imported
    {"event": "begin" | "end", "call": ...}               around each call
    {"event": "failed", "call": ..., "reason": ...}       it returned something other than 0, or raised
    {"event": "exit", "code": ..., "signal": ..., "peak_rss": bytes}    always the last one

What the toolkit prints goes to stdout and stderr, whoever reads them. Two processes: a child does the work, and its
parent, which is never busy, sees the end of either side and takes every process of the group with it.
"""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import sys
import traceback
from typing import IO, Any

_POLL_SECONDS = 0.1
_BLOCK = 1 << 16
_FAILED = 1


def work(calls: list[list[Any]], replies: IO[str]) -> int:
    """The calls in order on one RKLLM object; the first that fails is the last. Returns the exit code."""

    def reply(event: str, **facts: Any) -> None:
        replies.write(json.dumps(dict(facts, event=event)) + "\n")
        replies.flush()

    call = "import"
    try:
        from rkllm.api import RKLLM

        reply("ready", version=_version(), python=platform.python_version())
        model = RKLLM() if calls else None
        for call, arguments in calls:
            reply("begin", call=call)
            returned = getattr(model, call)(**arguments)
            sys.stdout.flush()
            if returned != 0:
                reply("failed", call=call, reason=f"it returned {returned!r}")
                return _FAILED
            reply("end", call=call)
    except MemoryError:
        reply("failed", call=call, reason="MemoryError")
        return _FAILED
    except BaseException as error:  # the toolkit may call sys.exit, too
        traceback.print_exc()
        reply("failed", call=call, reason=f"{type(error).__name__}: {error}")
        return _FAILED
    return 0


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("rkllm-toolkit")
    except metadata.PackageNotFoundError:
        return "unknown"


def watch(child: int, requests: int, replies: IO[str]) -> None:
    """Wait for the child's end or the caller's; then end the whole group, this process included."""
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            killed = os.WIFSIGNALED(status)
            facts = {
                "event": "exit",
                "code": None if killed else os.WEXITSTATUS(status),
                "signal": os.WTERMSIG(status) if killed else None,
                "peak_rss": usage.ru_maxrss * 1024,
            }
            replies.write(json.dumps(facts) + "\n")
            replies.flush()
            break
        if select.select([requests], [], [], _POLL_SECONDS)[0] and not os.read(requests, _BLOCK):
            break
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    requests, replies = int(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w")
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(requests, _BLOCK)
        if not piece:
            return  # the caller was gone before it asked for anything
        line += piece
    job = json.loads(line.decode("utf-8"))
    # In a group of our own before there is anything in it: a Ctrl-C in the terminal is the caller's to handle.
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    child = os.fork()
    if child:
        watch(child, requests, replies)
    os.close(requests)
    os._exit(_flushed(work(job["calls"], replies)))


def _flushed(code: int) -> int:
    """os._exit flushes nothing; a plain exit would run the toolkit's own exit handlers, which may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
