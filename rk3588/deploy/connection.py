"""A board's command line, over SSH or on this machine: run a command, talk to a running one, become root if need be.

Every wait is bounded. Standard output and standard error are read all the time, so neither can block the other.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Optional, Union

from rk3588.errors import ConnectError, DeployError, RkError

from . import shell

if TYPE_CHECKING:
    from typing_extensions import Self

PATIENCE = 60.0  # seconds for a command that computes nothing
_STRAGGLERS = 2.0  # seconds for output after the exit: a background child may hold the pipe for ever
_LATE_OUTPUT = 20.0  # seconds more where an answer has no end yet: on a busy machine its exit code may come first
_MOST_OUTPUT = 256 << 20  # bytes kept of one stream of a command; what comes beyond is read and thrown away
Data = Union[bytes, memoryview]
Ask = Callable[[str], Optional[str]]  # a question that wants a secret; None: nobody is there to answer


@dataclass(frozen=True)
class CommandResult:
    """What a command gave: exit code, stdout, stderr."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")

    @property
    def error_line(self) -> str:
        """The last line of stderr, or the exit code where it said nothing."""
        return _last_line(self.err) or f"exit code {self.code}"


# Escape sequences that a terminal acts on: titles, colours.
_STEERING = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b\[[0-?]*[ -/]*[@-~]|\x1b.")
# What a board says where it runs nothing, and what to do about it.
_ADVICE = (
    (r"expired|password change|change your password", "the password has expired: log in once with ssh and change it"),
    (r"not available|nologin", "this user has no login shell: take another one, or give it a shell (sudo chsh)"),
    (r"fork|resource temporarily|cannot allocate", "the board has no processes or memory left: reboot it"),
    (r"input/output error|read-only file system", "its disk fails: look at `dmesg` there, or write the card anew"),
)


def _last_line(said: bytes) -> str:
    text = _STEERING.sub("", said.decode("utf-8", "replace"))
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


class Session(ABC):
    """A command that is running on the board."""

    def __init__(self, what: str, marks: shell.Marks) -> None:
        self.what = what
        self.program = "its login shell"  # what is to run the command; or sudo
        self._marks = marks
        self._begun = self._ended = False
        self._buffers = (bytearray(), bytearray())
        self._changed = threading.Condition()
        self._readers: list[threading.Thread] = []
        self._open_streams = 0

    def _read_from(self, *sources: Callable[[int], bytes]) -> None:
        for source, buffer in zip(sources, self._buffers):
            thread = threading.Thread(target=self._read_stream, args=(source, buffer), daemon=True)
            self._readers.append(thread)
            self._open_streams += 1
            thread.start()

    def _read_stream(self, source: Callable[[int], bytes], buffer: bytearray) -> None:
        data = b"more"
        while data:
            try:
                data = source(1 << 16)
            except TimeoutError:
                continue
            except (OSError, EOFError, ValueError):  # the stream was closed while it was read
                data = b""
            with self._changed:
                answered = self._ended and buffer is self._buffers[0]
                if len(buffer) < _MOST_OUTPUT and not answered:
                    buffer += data
                self._open_streams -= not data
                self._changed.notify_all()

    @abstractmethod
    def send(self, data: Data) -> None:
        """Write to its stdin; ConnectError when nothing moves for a while, BrokenPipeError when it has ended."""

    @abstractmethod
    def end_input(self) -> None:
        """Close its stdin."""

    @abstractmethod
    def exit_code(self, timeout: float) -> Optional[int]:
        """Its exit code; None when it still runs after ``timeout`` seconds; ConnectError when the link was lost."""

    @abstractmethod
    def kill(self) -> None:
        """Let go of it."""

    def _take_marks_away(self) -> None:
        """Take away what stands before the command's own first word and after its last."""
        out = self._buffers[0]
        if not self._begun:
            at = out.find(self._marks.begin)
            if at < 0:
                return
            del out[: at + len(self._marks.begin)]
            self._begun = True
        at = out.find(self._marks.end)
        if at >= 0:
            del out[at:]
            self._ended = True

    def _has_line(self) -> bool:
        self._take_marks_away()
        return self._ended or (self._begun and b"\n" in self._buffers[0])

    def _is_complete(self) -> bool:
        """Whether nothing of the answer is to come any more: both marks of its end are there, or both streams ended."""
        self._take_marks_away()
        marked = self._ended and self._marks.end in self._buffers[1]
        return marked or self._open_streams == 0

    def read_line(self, timeout: float = PATIENCE) -> bytes:
        """The next line of stdout without its end; b"" when it ended before one."""
        out, deadline = self._buffers[0], time.monotonic() + timeout
        with self._changed:
            while not self._has_line() and self._readers[0].is_alive():
                if not self._changed.wait(min(1.0, deadline - time.monotonic())) and time.monotonic() > deadline:
                    raise ConnectError(f"{self.what} gave no answer in {timeout:.0f} s: is the board overloaded?")
            line, end, rest = bytes(out).partition(b"\n")
            if not end or not self._begun:
                return b""
            out[:] = rest
            return line

    def finish(self, timeout: float = PATIENCE) -> CommandResult:
        """Close its stdin, wait for its end; an error has what the board said where it was never started."""
        self.end_input()
        code = self.exit_code(timeout)
        if code is None:
            self.kill()
            raise ConnectError(f"{self.what} did not end within {timeout:.0f} s: is the board overloaded?")
        until = time.monotonic() + _STRAGGLERS
        for reader in self._readers:
            reader.join(max(0.0, until - time.monotonic()))
        with self._changed:
            self._changed.wait_for(self._is_complete, _LATE_OUTPUT)
            out, err = (bytes(buffer) for buffer in self._buffers)
        if not self._begun:
            raise self._why_never_started(code, out, err)
        return CommandResult(code, out, err.rpartition(self._marks.begin)[2].partition(self._marks.end)[0])

    def _why_never_started(self, code: int, out: bytes, err: bytes) -> RkError:
        if self.program == "sudo":
            return DeployError(f"sudo on {self.what} runs no commands: {_last_line(err) or f'exit code {code}'}")
        said = (out + b"\n" + err).decode("utf-8", "replace").lower()
        advice = next((f" ({told})" for pattern, told in _ADVICE if re.search(pattern, said)), "")
        reason = _last_line(err) or _last_line(out) or f"it ended with exit code {code} and said nothing"
        return ConnectError(f"{self.what} runs no commands: {self.program} said: {reason}{advice}")


class Connection(ABC):
    """One board. ``name`` is what messages call it; ``ask`` is how a sudo password is got."""

    def __init__(self, name: str, ask: Ask) -> None:
        self.name = name
        self._ask = ask
        self._sudo: Optional[tuple[str, bytes]] = None  # the words before a command, and the line it reads first
        self._user_id: Optional[int] = None
        self._ended = ""

    def refuse_all_further(self, reason: str) -> None:
        """Start nothing more; what is tried fails for this reason."""
        self._ended = reason

    @abstractmethod
    def _start(self, line: str, marks: shell.Marks) -> Session:
        """Start ``line``, which prints ``marks``, in a shell."""

    def _start_wrapped(self, line: str, before: str = "") -> Session:
        marks = shell.Marks()
        return self._start(before + shell.wrapped(line, marks), marks)

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    @property
    def user_id(self) -> int:
        if self._user_id is None:
            answer = (result := self.run("id -u")).text.strip()
            if not answer.isdigit():
                raise ConnectError(
                    f"{self.name} does not say who we are there: `id -u` answered {answer[:60]!r} ({result.error_line})"
                )
            self._user_id = int(answer)
        return self._user_id

    def start(self, line: str, *, root: bool = False) -> Session:
        """A running command; with ``root`` through sudo, whose password is asked for the first time it is needed."""
        if self._ended:
            raise ConnectError(f"{self.name}: {self._ended}")
        if not root or self.user_id == 0:
            return self._start_wrapped(line)
        words, secret = self._sudo_words()
        session = self._start_wrapped(line, f"{words} ")
        session.program = "sudo"
        with contextlib.suppress(BrokenPipeError):  # it has ended already: whoever reads its answer is told why
            session.send(secret)
        return session

    def run(self, line: str, *, root: bool = False, stdin: bytes = b"", timeout: float = PATIENCE) -> CommandResult:
        """Run a command to its end; a failure is the caller's to judge."""
        session = self.start(line, root=root)
        if stdin:
            with contextlib.suppress(BrokenPipeError):  # it ended without reading: its exit code says why
                session.send(stdin)
        return session.finish(timeout)

    def needs_password(self) -> Optional[bool]:
        """Whether sudo wants a password; None where there is no sudo for this user. Asks nobody."""
        if self.user_id == 0:
            return False
        tried = self._run_without_sudo("sudo -k -n true")
        if tried.code == 0:
            return False
        return True if b"password" in tried.err or b"authentication" in tried.err else None

    def _run_without_sudo(self, line: str, stdin: bytes = b"") -> CommandResult:
        session = self._start_wrapped(line)
        with contextlib.suppress(BrokenPipeError):
            session.send(stdin)
        return session.finish()

    def _sudo_words(self) -> tuple[str, bytes]:
        if self._sudo is None:
            # With -k, sudo ignores that a password was given a minute ago. So it reads one each time or never, and
            # it is known whether the first line of stdin is the password or belongs to the command.
            wanted = self.needs_password()
            if wanted is None:
                raise self._no_sudo_error()
            self._sudo = ("sudo -k -S -p ''", self._ask_for_sudo_password()) if wanted else ("sudo -n", b"")
        return self._sudo

    def _ask_for_sudo_password(self) -> bytes:
        for _ in range(3):
            answer = self._ask(f"sudo password on {self.name}: ")
            if answer is None:
                raise DeployError(f"sudo on {self.name} wants a password and there is no terminal to ask for it")
            line = answer.encode() + b"\n"
            tried = self._run_without_sudo("sudo -k -S -p '' true", line)
            if tried.code == 0:
                return line
            if b"sudoers" in tried.err or b"not allowed" in tried.err or b"may not run" in tried.err:
                raise self._no_sudo_error()  # sudo says so only after the right password
        raise DeployError(f"sudo on {self.name} refused the password three times")

    def _no_sudo_error(self) -> DeployError:
        return DeployError(
            f"sudo on {self.name} does not let this user in: log in as root or as a user of the group sudo"
        )
