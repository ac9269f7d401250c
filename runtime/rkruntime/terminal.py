"""Where a chat's lines come from: a terminal, with editing and history, or a pipe."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

from rk3588 import files

from .conversation import piped

FENCE = '"""'
Read = Callable[[str], str]
"""Given a prompt, the next line without its end; EOFError at the end, KeyboardInterrupt on Ctrl-C."""


class Reader(NamedTuple):
    """``history``: the file in which lines are kept, if they are."""

    read: Read
    history: Optional[Path] = None


def read_message(read: Read, prompt: str = "> ", more: str = ". ") -> str:
    """A line, or the lines between two fences."""
    line = read(prompt)
    if not line.lstrip().startswith(FENCE):
        return line
    lines = [line.lstrip()[len(FENCE) :]]
    while FENCE not in lines[-1]:
        lines.append(read(more))
    lines[-1] = lines[-1].partition(FENCE)[0]
    return "\n".join(lines).strip("\n")


def history_file() -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"))  # noqa: PTH111
    return state / "rk3588" / "chat_history"


def reader(commands: list[str], history: Optional[Path]) -> Reader:
    """The best reader for this stdin: prompt-toolkit, which keeps ``history`` (None: in memory), else readline, else
    plain lines."""
    if not sys.stdin.isatty():
        return Reader(_read_pipe)
    return _prompt_toolkit(commands, history) or Reader(_readline())


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """While an answer is written: what is typed meanwhile waits for the next prompt and is not shown in the answer."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield
        return
    termios: Any = importlib.import_module("termios")
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(descriptor, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _read_pipe(_prompt: str) -> str:
    line = sys.stdin.buffer.readline(files.TEXT + 1)
    if not line:
        raise EOFError
    return piped(line).rstrip("\r\n")


def _prompt_toolkit(commands: list[str], history: Optional[Path]) -> Optional[Reader]:
    if os.environ.get("TERM", "dumb") == "dumb":
        return None
    try:
        toolkit: Any = importlib.import_module("prompt_toolkit")
    except ImportError:
        return None
    output = importlib.import_module("prompt_toolkit.output").create_output(stdout=sys.stderr)
    words = importlib.import_module("prompt_toolkit.completion").WordCompleter(
        [f"/{name}" for name in commands], sentence=True
    )
    kept = history if history and _writable(history) else None
    kinds: Any = importlib.import_module("prompt_toolkit.history")
    lines = kinds.FileHistory(str(kept)) if kept else kinds.InMemoryHistory()
    session: Any = toolkit.PromptSession(
        history=lines, completer=words, complete_while_typing=False, output=output, enable_open_in_editor=True
    )
    return Reader(session.prompt, kept)


def _writable(history: Path) -> bool:
    """Whether there is such a file now, for this user's eyes only."""
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(history, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return False
    return True


def _readline() -> Read:
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() editing and history
    return input if sys.stdout.isatty() else _input_by_stderr


def _input_by_stderr(prompt: str) -> str:
    """Stdout goes to a file or a pipe: what invites the user to type is no part of the answer."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()
