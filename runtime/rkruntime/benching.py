"""``rkruntime.benchmark`` as the command sees it: a child that is started, listened to, and ended."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any, Optional

from rk3588 import children
from rk3588.bench.events import Emit
from rk3588.errors import BenchError, RkError, UsageError

_MOST_LINE = 1 << 20
_NO_EVENT = "the process that ran the model says something else than what it measures"
_LOAD_S = 1800.0  # before the first line, for a model to be loaded
_END_S = 20.0  # for an answer under way to be given up; a prompt cannot be


def measure(asked: Mapping[str, Any], threads: Optional[int], seconds: float, emit: Emit) -> None:
    """Measure a bundle; BenchError where the child dies or says nothing for ``seconds``."""
    child = children.python("rkruntime.benchmark", json.dumps(asked))
    environment = {**child.environment, **({"RKSIM_THREADS": str(threads)} if threads else {})}
    # A session of its own: a terminal's Ctrl-C is for us, who end it.
    process = subprocess.Popen(
        child.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    try:
        with closing(_lines(process, seconds)) as lines:
            for line in lines:
                event = _event(line)
                if "failed" in event:
                    raise _failure(event["failed"])
                emit(event)
        code = process.wait(_END_S)
    finally:
        _end(process)
    if code:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise BenchError(f"the process that ran the model ended with {how}: its own lines above may say why")


def _lines(process: subprocess.Popen[bytes], seconds: float) -> Generator[bytes, None, None]:
    assert process.stdout is not None
    handle, held = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(handle, selectors.EVENT_READ)
        most = seconds + _LOAD_S
        deadline = time.monotonic() + most
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise BenchError(f"the model has given nothing for {most:g} s: --timeout allows more")
            data = os.read(handle, 1 << 16)
            if not data:
                return
            *lines, held = (held + data).split(b"\n")
            if len(held) > _MOST_LINE:
                raise BenchError(_NO_EVENT)
            if lines:
                most = seconds
                deadline = time.monotonic() + most
            yield from lines


def _event(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BenchError(_NO_EVENT) from error
    if not isinstance(found, dict):
        raise BenchError(_NO_EVENT)
    return found


def _failure(said: Mapping[str, Any]) -> RkError:
    return UsageError(said["message"]) if said["code"] == 2 else BenchError(said["message"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let an answer under way be aborted, so that nothing holds the NPU; at a second Ctrl-C no more."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(_END_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
    finally:
        if process.stdout:
            process.stdout.close()
