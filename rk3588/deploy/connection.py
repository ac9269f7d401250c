"""A board's command line, over SSH or on this machine: run a command, talk to a running one, become root if need be.

Every wait is bounded. Standard output and standard error are read all the time, so neither can block the other.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Optional, Union

from rk3588.errors import ConnectError, DeployError

from . import shell

if TYPE_CHECKING:
    from typing_extensions import Self

PATIENCE = 60.0  # seconds for a command that computes nothing
_STRAGGLERS = 2.0  # seconds for output after the exit: a background child may hold the pipe for ever
_FLOOD = 256 << 20  # bytes of an answer: more no board of good will gives
Data = Union[bytes, memoryview]
Ask = Callable[[str], Optional[str]]  # a question that wants a secret; None: nobody is there to answer


@dataclass(frozen=True)
class Result:
    """What a command gave: exit code, stdout, stderr."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")

    @property
    def complaint(self) -> str:
        """The last line of stderr, or the exit code where it said nothing."""
        lines = self.err.decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else f"exit code {self.code}"


class Session(ABC):
    """A command that is running on the board."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._buffers = (bytearray(), bytearray())
        self._changed = threading.Condition()
        self._readers: list[threading.Thread] = []

    def _read_from(self, *sources: Callable[[int], bytes]) -> None:
        for source, buffer in zip(sources, self._buffers):
            thread = threading.Thread(target=self._drain, args=(source, buffer), daemon=True)
            self._readers.append(thread)
            thread.start()

    def _drain(self, source: Callable[[int], bytes], buffer: bytearray) -> None:
        data = b"more"
        while data:
            try:
                data = source(1 << 16)
            except TimeoutError:
                continue
            except (OSError, EOFError, ValueError):  # closed under us
                data = b""
            with self._changed:
                if len(buffer) < _FLOOD:  # more is read, so that nothing blocks, and thrown away
                    buffer += data
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

    def read_line(self, timeout: float = PATIENCE) -> bytes:
        """The next line of stdout without its end; b"" when it ended before one."""
        out, deadline = self._buffers[0], time.monotonic() + timeout
        with self._changed:
            while b"\n" not in out and self._readers[0].is_alive():
                if not self._changed.wait(min(1.0, deadline - time.monotonic())) and time.monotonic() > deadline:
                    raise ConnectError(f"{self.what} gave no answer in {timeout:.0f} s: is the board overloaded?")
            line, end, rest = bytes(out).partition(b"\n")
            if not end:
                return b""
            out[:] = rest
            return line

    def finish(self, timeout: float = PATIENCE) -> Result:
        """Close its stdin, wait for its end."""
        self.end_input()
        code = self.exit_code(timeout)
        if code is None:
            self.kill()
            raise ConnectError(f"{self.what} did not end within {timeout:.0f} s: is the board overloaded?")
        until = time.monotonic() + _STRAGGLERS
        for reader in self._readers:
            reader.join(max(0.0, until - time.monotonic()))
        with self._changed:
            return Result(code, bytes(self._buffers[0]), bytes(self._buffers[1]))


class Connection(ABC):
    """One board. ``name`` is what messages call it; ``ask`` is how a sudo password is got."""

    def __init__(self, name: str, ask: Ask) -> None:
        self.name = name
        self._ask = ask
        self._sudo: Optional[tuple[str, bytes]] = None  # the words before a command, and the line it reads first
        self._user_id: Optional[int] = None
        self._ended = ""

    def end(self, reason: str) -> None:
        """Start nothing more; what is tried fails for this reason."""
        self._ended = reason

    @abstractmethod
    def _start(self, line: str) -> Session:
        """Start ``line`` in a shell."""

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
            *noise, answer = self.run("id -u").text.strip().splitlines() or [""]
            if noise and answer.isdigit():
                raise ConnectError(
                    f"{self.name} prints {noise[0][:60]!r} before every answer: take that out of what its shell starts "
                    "with (~/.bashrc), or let it be said at a terminal only"
                )
            if not answer.isdigit():
                raise ConnectError(f"{self.name} runs no commands: `id -u` answered {answer[:60]!r}")
            self._user_id = int(answer)
        return self._user_id

    def start(self, line: str, *, root: bool = False) -> Session:
        """A running command; with ``root`` through sudo, whose password is asked for the first time it is needed."""
        if self._ended:
            raise ConnectError(f"{self.name}: {self._ended}")
        if not root or self.user_id == 0:
            return self._start(shell.wrapped(line))
        words, secret = self._rights()
        session = self._start(f"{words} {shell.wrapped(line)}")
        with contextlib.suppress(BrokenPipeError):  # it has ended: what comes next finds out, and why
            session.send(secret)
        return session

    def run(self, line: str, *, root: bool = False, stdin: bytes = b"", timeout: float = PATIENCE) -> Result:
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
        tried = self._run_plain("sudo -k -n true")
        if tried.code == 0:
            return False
        return True if b"password" in tried.err or b"authentication" in tried.err else None

    def _run_plain(self, line: str, stdin: bytes = b"") -> Result:
        session = self._start(shell.wrapped(line))
        with contextlib.suppress(BrokenPipeError):
            session.send(stdin)
        return session.finish()

    def _rights(self) -> tuple[str, bytes]:
        if self._sudo is None:
            # -k with a command ignores what sudo remembers: so it reads a password always or never, and what comes
            # after it on stdin is the command's.
            wanted = self.needs_password()
            if wanted is None:
                raise self._no_rights()
            self._sudo = ("sudo -k -S -p ''", self._password()) if wanted else ("sudo -n", b"")
        return self._sudo

    def _password(self) -> bytes:
        for _ in range(3):
            answer = self._ask(f"sudo password on {self.name}: ")
            if answer is None:
                raise DeployError(f"sudo on {self.name} wants a password and there is no terminal to ask for it")
            line = answer.encode() + b"\n"
            tried = self._run_plain("sudo -k -S -p '' true", line)
            if tried.code == 0:
                return line
            if b"sudoers" in tried.err or b"not allowed" in tried.err or b"may not run" in tried.err:
                raise self._no_rights()  # sudo says so only after the right password
        raise DeployError(f"sudo on {self.name} refused the password three times")

    def _no_rights(self) -> DeployError:
        return DeployError(
            f"sudo on {self.name} does not let this user in: log in as root or as a user of the group sudo"
        )
