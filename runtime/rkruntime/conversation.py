"""A conversation and what a user can do with it, without a terminal: messages in, texts and remarks out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Optional

from rk3588 import files
from rk3588.errors import RkError, UsageError
from rk3588.templates import Message

from .model import Model
from .prompts import Prompt
from .settings import BY_NAME, SHORT, WHILE_RUNNING, Settings, parse
from .thoughts import Split, ThoughtSplitter, opened_by, tags_of


class Leave(Exception):
    """The user wants to go."""


class Conversation:
    """The history, and the slash commands on it. ``remark`` is told what is no part of an answer."""

    def __init__(self, model: Model, system: Optional[str], remark: Callable[[str], None]) -> None:
        self.model = model
        self.system = system
        self.history: list[Message] = []
        self.saved: list[list[Message]] = []
        self.attached = ""
        self.think: Optional[bool] = None  # None: as the model was made
        self._remark = remark

    @property
    def messages(self) -> list[Message]:
        first: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.history]

    def _prompt(self, messages: Sequence[Message]) -> Prompt:
        thinking = self.model.prompts.thinking
        return self.model.prompts.chat(messages, {} if self.think is None else thinking.switch(self.think))

    def say(self, text: str) -> Generator[Split, None, None]:
        """The answer to ``text``, as it comes, and the thought before it. What came before Ctrl-C or an error stays in
        the history.

        A message that could not be answered at all is forgotten, so that the next one stands alone.
        """
        asked: Message = {"role": "user", "content": self.attached + text}
        prompt = self._prompt([*self.messages, asked])
        if self.model.too_long(prompt):
            raise UsageError(
                f"with this message the conversation has {len(prompt)} tokens, and the context is "
                f"{self.model.context}: /forget the oldest exchange, /clear, or start with "
                f"{self.model.settings.longer_than(self.model.context, self.model.most_context)}"
            )
        opened = opened_by(self.model.prompts.end_of(prompt))
        tags = tags_of(opened) or self.model.prompts.thinking.tags
        splitter = ThoughtSplitter(tags, bool(opened))
        parts: list[Split] = []
        try:
            with closing(self.model.answer(prompt, tags)) as answer:
                for text in answer:
                    if any(part := splitter.feed(text)):
                        parts.append(part)
                        yield part
            if any(part := splitter.end()):
                parts.append(part)
                yield part
        finally:
            if parts or self.model.cost.finish_reason != "abort":
                self.attached = ""
                self.history += [asked, _said(parts)]

    def command(self, line: str) -> None:
        """Do what a line that begins with ``/`` says. UsageError if it cannot be done, Leave to end."""
        name, _, argument = line[1:].strip().partition(" ")
        if name not in COMMANDS:
            raise UsageError(f"there is no /{name}: /help lists what there is")
        COMMANDS[name][0](self, argument.strip())

    def _help(self, _argument: str) -> None:
        width = max(len(f"/{name} {argument}") for name, (_, argument, _) in COMMANDS.items())
        for name, (_, argument, text) in COMMANDS.items():
            if text:
                self._remark(f"{f'/{name} {argument}':<{width}}  {text}")
        self._remark('""" begins and ends a message of several lines; Ctrl-C stops an answer, Ctrl-D leaves')

    def _clear(self, _argument: str) -> None:
        self.history, self.attached = [], ""
        self._remark("the conversation is empty" + (", the system prompt stays" if self.system else ""))

    def _undo(self, _argument: str) -> None:
        self._need_history()
        self._remark(f"forgot: {_short(self.history[-2])}")
        del self.history[-2:]

    def _forget(self, _argument: str) -> None:
        self._need_history()
        self._remark(f"forgot: {_short(self.history[0])}")
        del self.history[:2]

    def _system(self, argument: str) -> None:
        if argument:
            self.system = argument
        self._remark(f"system prompt: {self.system or 'none'}")

    def _exchanges(self) -> str:
        count = len(self.history) // 2
        return f"{count} exchange{'s' * (count != 1)}"

    def _think(self, argument: str) -> None:
        if argument not in ("", "on", "off"):
            raise UsageError("/think on, or /think off")
        if argument and not self.model.prompts.thinking.switch(argument == "on"):
            raise UsageError("this model's chat template has no switch for thinking: it thinks as it was made to")
        if argument:
            self.think = argument == "on"
        self._remark(f"thinking: {'as the model was made' if self.think is None else 'on' if self.think else 'off'}")

    def _lora(self, argument: str) -> None:
        if argument:
            self.model.choose_lora(None if argument == "off" else argument)
        there = sorted({*self.model.own_loras, *self.model.llm.loras})
        self._remark(f"LoRA: {self.model.lora or 'none'}; there are: {', '.join(there) or 'none'}")

    def _context(self, _argument: str) -> None:
        prompt = self._prompt(self.messages) if self.messages else []
        exchanges = self._exchanges()
        if isinstance(prompt, str):
            self._remark(f"{exchanges}; tokens cannot be counted: this bundle has no vocabulary of its own")
        else:
            # What is left unfinished at the end of a context is one token more with the template around it.
            of = self.model.context
            used = min(len(prompt), of)
            full = "; it is full: /forget the oldest exchange, or /clear" if self.model.too_long(prompt) else ""
            self._remark(f"{used} of {of} tokens ({100 * used / of:.0f} %), {exchanges}{full}")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        name, value = SHORT.get(name, name.replace("-", "_")), value.strip()
        if not name:
            self._show_settings()
        elif name == "seed":
            self._set_seed(value)
        elif name not in WHILE_RUNNING:
            raise UsageError(f"there is no setting {name}: there are {', '.join((*WHILE_RUNNING, 'seed'))}")
        elif not value:
            self._show_settings(name)
        else:
            wanted = BY_NAME[name].default if value == "default" else parse(name, value)
            self._change(Settings.of({**asdict(self.model.settings), name: wanted}))
            self._show_settings(name)

    def _set_seed(self, value: str) -> None:
        """The simulated runtime reads its seed when a model is loaded; librkllmrt has none."""
        if not self.model.choice.simulated:
            raise UsageError("librkllmrt has no seed: answers differ from run to run, unless temperature is 0")
        if not value:
            self._show_seed()
            return
        if not value.isascii() or not value.isdigit() or int(value) >= 1 << 64:
            raise UsageError("seed has to be a whole number from 0 on")
        os.environ["RKSIM_SEED"] = value
        self._change(self.model.settings, again=True)
        self._show_seed()

    def _show_seed(self, width: int = 0) -> None:
        told = "Of the draws; new: another at each load. librkllmrt has none."
        self._remark(f"{'seed':<14} {_seed():<{width}}  {told}")

    def _change(self, settings: Settings, again: bool = False) -> None:
        if self.model.change(settings, again):
            self._remark(
                "the model was loaded again, since the runtime fixes this when it loads one; the conversation stays"
            )

    def _show_settings(self, only: str = "") -> None:
        now = {**asdict(self.model.settings), **self.model.sampling._asdict(), "context": self.model.context}
        values = {name: f"{now[name]:g}" for name in ([only] if only else WHILE_RUNNING)}
        has_seed = not only and self.model.choice.simulated
        width = max(map(len, [*values.values(), *([_seed()] if has_seed else [])]))
        for name, value in values.items():
            self._remark(f"{name:<14} {value:<{width}}  {BY_NAME[name].help}")
        if has_seed:
            self._show_seed(width)

    def _stats(self, _argument: str) -> None:
        if not self.model.cost.tokens:
            raise UsageError("there has been no answer yet")
        self._remark(f"{self.model.cost} (on this machine)")
        if self.model.cost.perf:
            self._remark(f"the runtime's own figures: {self.model.cost.perf}")
        self._remark(_on_a_board(self.model))
        if self.messages:
            self._context("")

    def _dump(self, argument: str) -> None:
        path = _path(argument, "/dump FILE")
        text = self.model.prompts.shown(self.messages)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        self._remark(f"wrote {path}, as the model reads it")

    def _push(self, _argument: str) -> None:
        self.saved.append(list(self.history))
        self._remark(f"saved; {len(self.saved)} on the stack")

    def _pop(self, _argument: str) -> None:
        if not self.saved:
            raise UsageError("nothing has been saved: /push does that")
        self.history = self.saved.pop()
        self._remark(f"back at {self._exchanges()}; {len(self.saved)} left on the stack")

    def _upload(self, argument: str) -> None:
        path = _path(argument, "/upload FILE")
        text = read_text(path)
        attached = f"{self.attached}{path.name}:\n```\n{text.rstrip()}\n```\n\n"
        prompt = self.model.prompts.chat([*self.messages, {"role": "user", "content": attached}])
        if self.model.too_long(prompt):
            raise UsageError(
                f"with {path.name} the conversation has {len(prompt)} tokens, and the context is {self.model.context}: "
                "upload a part of it, or /forget the oldest exchange"
            )
        self.attached = attached
        self._remark(f"{path.name} goes with the next message ({len(text)} characters)")

    def _leave(self, _argument: str) -> None:
        raise Leave

    def _need_history(self) -> None:
        if not self.history:
            raise UsageError("the conversation is empty")


def _seed() -> str:
    return os.environ.get("RKSIM_SEED", "new")


def _on_a_board(model: Model) -> str:
    """What ``rk3588 predict`` says of the answer just given, on a Rock 5B."""
    from rk3588 import boards, predict, shape

    try:
        work = predict.Workload(prompt=max(model.cost.prompt_tokens or 1, 1))
        board = boards.catalogue().board("rock-5b")
        found = predict.predict(shape.load(model.bundle.path), model.bundle.dtype, work.on(board), board.soc)
    except RkError as error:
        return f"no prediction for a board: {error}"
    speed, first = found.decode_tok_s, found.ttft_ms
    return (
        f"predicted on a Rock 5B: first token after {first.low:.0f} to {first.high:.0f} ms, "
        f"decode {speed.low:.0f} to {speed.high:.0f} tok/s"
    )


def read_text(path: Path) -> str:
    """A text file that the user named."""
    try:
        return files.read_text(path, files.TEXT, None, UsageError)
    except FileNotFoundError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def piped(raw: bytes) -> str:
    """What came on stdin, held to the same as a file."""
    if len(raw) > files.TEXT:
        raise UsageError(f"stdin has more than {files.TEXT / 1e6:.0f} MB, which are the most: pipe in a part of it")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is not a text in UTF-8 (byte {error.start}): pipe in one (iconv -t UTF-8 makes one of others)"
        ) from error


def typed(text: str, what: str) -> str:
    """A text of the command line; UsageError where its bytes are not UTF-8, which Python gives as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not a text in UTF-8 (character {error.start}): give it as one") from error
    return text


def _path(argument: str, usage: str) -> Path:
    """A path as one types it: with a tilde, with quotes."""
    try:
        parts = shlex.split(argument)
    except ValueError:
        parts = [argument]
    if not parts:
        raise UsageError(f"which file? {usage}")
    return Path(os.path.expanduser(" ".join(parts)))  # noqa: PTH111  Path.expanduser raises on unknown users


def _said(parts: Sequence[Split]) -> Message:
    """An answer for the history. What was thought is the template's to show or to leave out."""
    thought = "".join(part.thought for part in parts)
    said: Message = {"role": "assistant", "content": "".join(part.text for part in parts)}
    return {**said, "reasoning_content": thought} if thought else said


def _short(message: Message) -> str:
    text = " ".join(str(message["content"]).split())
    return text if len(text) <= 60 else text[:59] + "…"


Handler = Callable[[Conversation, str], None]
# Name: handler, argument, help. Without a help text: a synonym.
COMMANDS: dict[str, tuple[Handler, str, str]] = {
    "help": (Conversation._help, "", "this list"),
    "clear": (Conversation._clear, "", "begin anew; the system prompt stays"),
    "undo": (Conversation._undo, "", "forget the last exchange"),
    "forget": (Conversation._forget, "", "forget the oldest exchange"),
    "system": (Conversation._system, "[TEXT]", "show or set the system prompt"),
    "think": (Conversation._think, "[on|off]", "whether the model thinks first, where its template has a switch"),
    "lora": (Conversation._lora, "[NAME|FILE|off]", "show or choose the adapter that answers are given with"),
    "context": (Conversation._context, "", "how much of the context is used"),
    "set": (Conversation._set, "[NAME [VALUE]]", "show or change how answers are drawn; VALUE default: as it was made"),
    "stats": (Conversation._stats, "", "times and speed of the last answer"),
    "upload": (Conversation._upload, "FILE", "put a text file into the next message"),
    "dump": (Conversation._dump, "FILE", "write the conversation as the model reads it"),
    "push": (Conversation._push, "", "save the conversation on a stack"),
    "pop": (Conversation._pop, "", "go back to the one saved last"),
    "exit": (Conversation._leave, "", "leave, like Ctrl-D"),
    "bye": (Conversation._leave, "", ""),
    "quit": (Conversation._leave, "", ""),
}
