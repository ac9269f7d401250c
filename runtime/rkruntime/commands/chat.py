"""``rk3588 chat``: a conversation in the terminal, or through a pipe with a message on each line."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Optional, TextIO

import click

from rk3588 import bundle as bundles
from rk3588.errors import RkError, UsageError, printable, shown
from rk3588.templates import ChatTemplate
from rkruntime.conversation import COMMANDS, Conversation, Leave, read_text, typed
from rkruntime.model import Model
from rkruntime.terminal import Read, history_file, read_message, reader, without_echo

from . import options


@click.command()
@options.BUNDLE
@click.option("-p", "--system", metavar="TEXT", help="System prompt.")
@click.option("-f", "--file", type=click.Path(path_type=Path), metavar="FILE", help="First message, from a file.")
@click.option("--no-history", is_flag=True, help="Keep nothing of what is typed beyond this conversation.")
@options.settings
def chat(path: Path, system: Optional[str], file: Optional[Path], no_history: bool, **chosen: Any) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands.

    Without a terminal, each line of stdin is a message: answers go to stdout, all else to stderr.
    """
    first = read_text(file) if file else None
    if first is not None and not first.strip():
        raise UsageError(f"{file} is empty")
    system = system and typed(system, "the system prompt")
    wanted = options.make_settings(chosen)
    options.answers_only()
    ChatTemplate.of(bundles.read(path), wanted.template)  # a bundle without one is refused before it is loaded
    with Model(path, wanted, options.warn, options.announce) as model:
        conversation = Conversation(model, system, _remark)
        if sys.stdin.isatty():
            _remark(_greeting(model))
        read = reader(list(COMMANDS), None if no_history else history_file())
        if read.history:
            _remark(f"What you type is kept in {read.history} (--no-history: not).")
        _talk(conversation, read.read, first)


def _talk(conversation: Conversation, read: Read, first: Optional[str]) -> None:
    """Until Ctrl-D, the end of the pipe or /exit. In a pipe, the first message that fails ends it."""
    interactive = sys.stdin.isatty()
    while True:
        try:
            line, first = (read_message(read) if first is None else first), None
            _turn(conversation, line)
        except (EOFError, Leave):
            if interactive:
                click.echo(err=True)
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            _remark("\nCtrl-D leaves")
        except RkError as error:
            if not interactive:
                raise
            _remark(f"Error: {error}")


def _turn(conversation: Conversation, line: str) -> None:
    if line.startswith("/"):
        conversation.command(line)
    elif line.strip():
        _answer(conversation, line)


def _answer(conversation: Conversation, line: str) -> None:
    try:
        _stream(conversation, line)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        _remark("(stopped)")
        return
    model = conversation.model
    room = ": /forget the oldest exchange, or /clear"
    if ending := options.cut_off(model.cost, model.context, "/set max_tokens", "/set loop_limit 0", room):
        _remark(ending)


def _stream(conversation: Conversation, line: str) -> None:
    writer = _Writer()
    try:
        with without_echo(), closing(conversation.say(line)) as answer:
            for part in answer:
                writer.write(part.thought, thought=True)
                writer.write(part.text)
    finally:
        writer.end_line()


class _Writer:
    """Answers to stdout; thoughts dim, and to stderr where stdout is no terminal: they are no part of the answer."""

    def __init__(self) -> None:
        self._text, self._thought = "", False  # what was written last

    def write(self, text: str, thought: bool = False) -> None:
        if not text:
            return
        if thought != self._thought:
            self.end_line()
        self._text, self._thought = text, thought
        stream = sys.stderr if thought and not sys.stdout.isatty() else sys.stdout
        safe = shown(text, stream)
        stream.write(click.style(safe, dim=True) if thought and _takes_colour(stream) else safe)
        stream.flush()

    def end_line(self) -> None:
        if self._text and not self._text.endswith("\n"):
            text, self._text = "\n", "\n"
            stream = sys.stderr if self._thought and not sys.stdout.isatty() else sys.stdout
            stream.write(text)
            stream.flush()


def _takes_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _greeting(model: Model) -> str:
    where = "simulated, no NPU is used" if model.choice.simulated else "on the NPU"
    name = f"{model.bundle.name} with {model.lora}" if model.lora else model.bundle.name
    return (
        f"{name} ({model.bundle.dtype}), {model.context} tokens of context; {where}; {model.sampling}. /help for help."
    )


def _remark(text: str) -> None:
    click.echo(printable(text), err=True)
