"""Where a chat's lines come from: a terminal, with editing and history, or a pipe."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

FENCE = '"""'
Reader = Callable[[str], str]
"""Given a prompt, the next line without its end; EOFError at the end, KeyboardInterrupt on Ctrl-C."""


def read_message(read: Reader, prompt: str = "> ", more: str = ". ") -> str:
    """A line, or the lines between two fences."""
    line = read(prompt)
    if not line.lstrip().startswith(FENCE):
        return line
    lines = [line.lstrip()[len(FENCE) :]]
    while FENCE not in lines[-1]:
        lines.append(read(more))
    lines[-1] = lines[-1].partition(FENCE)[0]
    return "\n".join(lines).strip("\n")


def reader(commands: list[str]) -> Reader:
    """The best reader for this stdin: prompt-toolkit, else readline, else plain lines."""
    if not sys.stdin.isatty():
        return _read_pipe
    return _prompt_toolkit(commands) or _readline()


def _read_pipe(_prompt: str) -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8", "replace").rstrip("\r\n")


def _prompt_toolkit(commands: list[str]) -> Optional[Reader]:
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
    session: Any = toolkit.PromptSession(
        history=_history(), completer=words, complete_while_typing=False, output=output, enable_open_in_editor=True
    )
    read: Reader = session.prompt
    return read


def _history() -> Any:
    """What was typed before, for this user's eyes only; in memory where there is no place for it."""
    history: Any = importlib.import_module("prompt_toolkit.history")
    state = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"))  # noqa: PTH111
    path = state / "rk3588" / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return history.InMemoryHistory()
    return history.FileHistory(str(path))


def _readline() -> Reader:
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() editing and history
    return input if sys.stdout.isatty() else _input_by_stderr


def _input_by_stderr(prompt: str) -> str:
    """Stdout goes to a file or a pipe: what invites the user to type is no part of the answer."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()
