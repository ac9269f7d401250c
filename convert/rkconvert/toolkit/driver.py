"""Runs calls of rkllm-toolkit in its own interpreter, and turns every way they can end into one sentence.

``toolkit_worker.py`` is the other end. What the toolkit prints goes into a log file; its progress bars are read from
there, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from rk3588 import children
from rk3588.errors import TargetError, ToolkitError
from rkconvert import memory

Call = tuple[str, dict[str, Any]]  # a method of rkllm.api.RKLLM and its arguments
Progress = Callable[[str, int, int], None]

_WORKER = Path(__file__).with_name("toolkit_worker.py")
_POLL_SECONDS = 0.2
_KEPT_LINES = 50
_BAR = re.compile(r"([A-Za-z][\w .'-]*?)\W+(\d{1,3})%")  # "Optimizing model:  42%|####" as tqdm writes it
_COMPLAINT = re.compile(r"error|fail|exception|not support|invalid|\bE ", re.IGNORECASE)
_GB = 1e9


@dataclass(frozen=True)
class Outcome:
    """What is known after all calls have succeeded."""

    version: str  # of the package rkllm-toolkit
    python: str


def run(
    python: Path,
    calls: Sequence[Call],
    log: Path,
    progress: Progress = lambda *_: None,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run ``calls`` in order under ``python``; ToolkitError says which failed and why.

    ``check`` is asked a few times a second and may raise to end it. Whatever happens, no process stays behind.
    """
    kills = memory.oom_kills()
    with _log_file(log) as file:
        session = _Session(log, file, progress, len(calls))
        with _worker(python, calls) as (replies, output):
            session.read(replies, output, check)
    if session.failure or session.exit.get("signal") or session.exit.get("code") != 0:
        session.fail(memory.oom_kills() > kills)
    return Outcome(session.ready["version"], session.ready["python"])


@contextmanager
def _log_file(log: Path) -> Iterator[BinaryIO]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("wb")
    except OSError as error:
        raise TargetError(f"cannot write the toolkit's log {log}: {error.strerror}") from error
    with file:
        yield file


@contextmanager
def _worker(python: Path, calls: Sequence[Call]) -> Iterator[tuple[int, int]]:
    """The worker at work: its replies and what the toolkit prints, as file descriptors. Gone when the block ends."""
    requests_in, requests = os.pipe()
    replies, replies_out = os.pipe()
    output, output_in = os.pipe()
    mine, theirs = [requests, replies, output], [requests_in, replies_out, output_in]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1"}
    for variable in ("PYTHONPATH", "PYTHONHOME"):  # this interpreter's, and none of that one's business
        environment.pop(variable, None)
    try:
        process = subprocess.Popen(
            # -I: `import build` over there must not find the modules that lie beside the worker.
            [str(python), "-I", "-u", str(_WORKER), str(requests_in), str(replies_out)],
            stdin=subprocess.DEVNULL, stdout=output_in, stderr=output_in, env=environment,
            pass_fds=(requests_in, replies_out), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        for fd in (*mine, *theirs):
            os.close(fd)
        raise ToolkitError(f"cannot start {python}: {error.strerror}; install the toolkit again") from error
    try:
        for fd in theirs:
            os.close(fd)
        with contextlib.suppress(BrokenPipeError):
            os.write(requests, json.dumps({"calls": calls}).encode() + b"\n")
        yield replies, output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for fd in mine:
            os.close(fd)


@dataclass
class _Session:
    log: Path
    file: BinaryIO
    progress: Progress
    calls: int
    ready: dict[str, Any] = field(default_factory=dict)
    exit: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] = field(default_factory=dict)
    call: str = "its start"
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))

    def read(self, replies: int, output: int, check: Callable[[], None]) -> None:
        """Everything from both pipes until both have ended."""
        rest = {replies: b"", output: b""}
        with selectors.DefaultSelector() as selector:
            for fd in rest:
                selector.register(fd, selectors.EVENT_READ)
            while selector.get_map():
                check()
                for key, _ in selector.select(_POLL_SECONDS):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fd)
                    if key.fd == output:
                        self.file.write(data)
                    *whole, rest[key.fd] = re.split(rb"[\r\n]+", rest[key.fd] + data)
                    for line in [*whole, *([rest[key.fd]] if not data else [])]:
                        text = line.decode("utf-8", "replace").strip()
                        if text:
                            self._printed(text) if key.fd == output else self._event(json.loads(text))

    def _printed(self, text: str) -> None:
        bar = _BAR.search(text)
        if bar:
            self.progress(f"rkllm-toolkit: {bar[1].strip()}", min(int(bar[2]), 100), 100)
        else:
            self.lines.append(text)

    def _event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "ready":
            self.ready = event
        elif kind == "begin":
            self.call = event["call"]
            self.progress(f"rkllm-toolkit: {self.call}", 0, 100)
        elif kind == "end":
            self.progress(f"rkllm-toolkit: {self.call}", 100, 100)
        elif kind == "failed":
            self.failure = event
        elif kind == "exit":
            self.exit = event

    def fail(self, kernel_killed: bool) -> NoReturn:
        number = self.exit.get("signal", None if self.exit else signal.SIGKILL)
        tail = f"; all it printed is in {self.log}"
        if number == signal.SIGKILL or self.failure.get("reason") == "MemoryError":
            raise ToolkitError(self._out_of_memory(kernel_killed) + tail)
        if number is not None:
            raise ToolkitError(f"rkllm-toolkit crashed with {children.signal_name(number)} in {self.call}{tail}")
        if not self.failure:
            code = self.exit["code"]
            raise ToolkitError(f"rkllm-toolkit ended by itself in {self.call}, code {code}{self._last()}{tail}")
        call, reason = self.failure["call"], self.failure["reason"]
        if call == "import":
            raise ToolkitError(f"rkllm-toolkit cannot be imported ({reason}): install it again{tail}")
        raise ToolkitError(f"rkllm-toolkit failed in {call}: {reason}{self._last()}{tail}")

    def _last(self) -> str:
        """What it printed last that sounds like a reason."""
        plain = [line for line in self.lines if not line.startswith(("Traceback", "File "))]
        found = next((line for line in reversed(plain) if _COMPLAINT.search(line)), plain[-1] if plain else "")
        return f", having printed: {found[:300]}" if found and found not in self.failure.get("reason", "") else ""

    def _out_of_memory(self, kernel_killed: bool) -> str:
        peak = self.exit.get("peak_rss") or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        has = memory.machine()
        what = "was killed (SIGKILL)" if self.failure.get("reason") != "MemoryError" else "got no more memory"
        sure = ", and the kernel counts an out-of-memory kill" if kernel_killed else ""
        return (
            f"rkllm-toolkit {what} in {self.call}: out of memory. It had taken {peak / _GB:.1f} GB; this machine has "
            f"{has.ram / _GB:.1f} GB of RAM and {has.swap / _GB:.1f} GB of free swap{sure}. End other programs, add "
            "swap, or convert on a larger machine"
        )
