"""This side of a talk with the agent, the program that runs on the board: sends it along, asks it, holds its lock."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Optional, Union

from rk3588.errors import ConnectError, DeployError

from . import shell
from .agent_zip import agent_zip
from .connection import PATIENCE, CommandResult, Connection, Session

# The zip is read from stdin into memory and imported from there: nothing is left on the board. -I: nothing is imported
# from the current folder or the user's, which root must not run.
_BOOT = (
    "import os,sys; b=sys.stdin.buffer; f=os.memfd_create('agent'); os.write(f,b.read(int(b.readline()))); "
    "sys.path.insert(0,'/proc/self/fd/%d'%f); from rk3588.deploy.board.agent import main; main(sys.argv[1:])"
)
_BEAT_SECONDS = 2.0


@functools.lru_cache(maxsize=1)
def _program() -> bytes:
    data = agent_zip()
    return f"{len(data)}\n".encode() + data


def line(words: str) -> str:
    """The command line that runs the agent with ``words``, already quoted."""
    return f"{shell.command('python3', '-I', '-c', _BOOT)} {words}"


def start(connection: Connection, words: str, *, root: bool, stdin: bytes = b"") -> Session:
    """The running agent; DeployError, with the board's own words, where it ends before it has read all of ``stdin``."""
    session = connection.start(line(words), root=root)
    try:
        session.send(_program() + stdin)
    except BrokenPipeError:
        raise_its_last_words(connection, session)
    return session


def raise_its_last_words(connection: Connection, session: Session) -> NoReturn:
    """It ended while it was sent something: its last words say why."""
    result = session.finish()
    checked_answer(connection, result)
    raise DeployError(f"{connection.name} broke a step off: {result.error_line}")


def ask(connection: Connection, *words: object, root: bool, seconds: float = PATIENCE) -> dict[str, Any]:
    """The agent's answer to one question; DeployError with its own words when it says no."""
    session = start(connection, shell.command(*words), root=root)
    return checked_answer(connection, session.finish(seconds))


def checked_answer(connection: Connection, result: CommandResult) -> dict[str, Any]:
    last = last_json_object(result.text)
    if last is None:
        raise DeployError(f"{connection.name}: {result.error_line}")
    if not last.get("ok"):
        raise DeployError(f"{connection.name}: {last.get('error', 'the step failed')}")
    return last


def last_json_object(text: str) -> Optional[dict[str, Any]]:
    return next((found for line in reversed(text.splitlines()) if (found := json_object(line)) is not None), None)


def json_object(line: Union[str, bytes]) -> Optional[dict[str, Any]]:
    """What a line says; None where it is something else, as of a board that is not well."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def hold_lock(
    connection: Connection, path: str, who: str, prefix: str, *, root: bool, waiting: Callable[[], None]
) -> Iterator[None]:
    """One deployment at a time: held on the board while this side shows that it lives."""
    session = start(connection, shell.command("lock", path, who, prefix), root=root)
    said = session.read_line()
    if b'"waiting"' in said:
        waiting()
        said = session.read_line(1800.0)
    if b'"ok": true' not in said:
        result = session.finish()
        checked_answer(connection, CommandResult(result.code, said + b"\n" + result.out, result.err))
    done = threading.Event()
    beat = threading.Thread(target=_show_signs_of_life, args=(connection, session, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join(2 * _BEAT_SECONDS)
        try:
            session.finish(10.0)
        except ConnectError:
            session.kill()


def _show_signs_of_life(connection: Connection, session: Session, done: threading.Event) -> None:
    while not done.wait(_BEAT_SECONDS):
        try:
            session.send(b"\n")
        except (OSError, ConnectError):
            reason = "the board's lock was lost, as nothing was heard from here for a while: run it again"
            connection.refuse_all_further(reason)
            return
