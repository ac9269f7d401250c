"""A click group that imports a command when it is called, and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any, NoReturn, Optional

import click

from .errors import RkError, printable
from .nearest import closest

_LONGEST_MESSAGE = 4000  # characters: what was wrong may be a text of any length
# What other programs call it.
_MEANT = {"port": "listen", "host": "listen", "temperature": "temp", "ctx": "context", "n-predict": "max-tokens",
          "output": "out", "api-key": "keys", "force": "overwrite"}  # fmt: skip
# Which extra of this package has a module that it does without otherwise.
EXTRAS = {
    **dict.fromkeys(("numpy", "gguf", "safetensors", "rich", "huggingface_hub"), "convert"),
    **dict.fromkeys(("starlette", "uvicorn", "jsonschema", "prometheus_client"), "daemon"),
    "matplotlib": "plot", "distributed": "sweep", "prompt_toolkit": "chat", "paramiko": "deploy",
}  # fmt: skip
INTERRUPTED = 130  # what a shell reports of a program ended by Ctrl-C: 128 + SIGINT


class LazyGroup(click.Group):
    """``lazy`` maps a command's name to ("module:attribute", its one-line help).

    With ``default``, arguments that begin with no command's name are that command's: ``rkconvert MODEL`` is
    ``rkconvert build MODEL``.
    """

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, default: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})
        self.default = default

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        if cmd_name in self.lazy:
            module, _, attribute = self.lazy[cmd_name][0].partition(":")
            command: Optional[click.Command] = getattr(importlib.import_module(module), attribute)
        else:
            command = super().get_command(ctx, cmd_name)
        if command:
            _refuse_empty_paths(command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if self.default and args and args[0] not in {*self.list_commands(ctx), *own}:
            if _may_be_command(args[0]) and (near := closest(args[0], self.list_commands(ctx), 0.75)):
                ctx.fail(_no_such("command", args[0], near))
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[Optional[str], Optional[click.Command], list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            names = self.list_commands(ctx)
            near = closest(name, names)
            ctx.fail(_no_such("command", name, near) if near else f"No such command {name!r}: {_one_of(names)}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the map's texts: ``--help`` imports nothing."""
        rows = [(name, help_text) for name, (_, help_text) in self.lazy.items()]
        for name in super().list_commands(ctx):
            rows.append((name, self.commands[name].get_short_help_str(limit=3 * formatter.width)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class _NonEmptyPath(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.4 on
    """A path as ``usual`` takes it, but not "", which a shell makes of a variable that is not set, and pathlib "."."""

    envvar_list_splitter = click.Path.envvar_list_splitter

    def __init__(self, usual: click.Path) -> None:
        self.usual, self.name = usual, usual.name

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Any:
        if value == "":
            self.fail("it is empty: give a path, or . for this folder.", param, ctx)
        return self.usual.convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        return self.usual.shell_complete(ctx, param, incomplete)


def _refuse_empty_paths(command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            parameter.type = _NonEmptyPath(parameter.type)


def main(command: click.Command, name: str) -> NoReturn:
    """Run a program: every failure is one line on stderr and an exit code, never a traceback of ours."""
    signal.signal(signal.SIGTERM, _terminate)
    _open_closed_streams()
    _refuse_empty_paths(command)
    try:
        result = command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left (| head): it knows why
        sys.exit(1)
    except click.NoSuchOption as error:
        click.UsageError(_option_sentence(error), error.ctx).show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("Interrupted", INTERRUPTED)
    except RkError as error:
        _fail(f"Error: {error}", error.exit_code)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        _fail(f"Error: this needs {missing}: pip install 'rk3588[{EXTRAS[missing]}]'", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"Error: {where}{error.strerror or error}", 1)
    finally:
        _drop_unwritten()
    sys.exit(result if isinstance(result, int) else 0)


def _open_closed_streams() -> None:
    """Started with ``2>&-`` and the like: what is printed goes nowhere, and not into the next file that is opened."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this number, unless it is taken
            os.set_inheritable(nowhere, nowhere == number)
            setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8", errors="replace"))


def _drop_unwritten() -> None:
    """What cannot be written (a full disk, a reader that left) was told: Python is not to try and tell it once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # stderr is full, too
        click.echo(printable(_shortened(message)), err=True)
    sys.exit(code)


def _shortened(message: str) -> str:
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return f"{message[: _LONGEST_MESSAGE * 3 // 4]} […] {message[-_LONGEST_MESSAGE // 4 :]}"


def _option_sentence(error: click.NoSuchOption) -> str:
    """The nearest of the command's own options, or all of them."""
    if error.ctx is None:
        return error.format_message()
    known = [name for parameter in error.ctx.command.get_params(error.ctx) for name in parameter.opts]
    wanted = error.option_name
    long = {name.lstrip("-"): name for name in known if name.startswith("--")}
    word = wanted.lstrip("-")
    near = _MEANT[word] if _MEANT.get(word) in long else _begun(word, error.ctx) or closest(word, long, 0.6)
    if near is None:
        return f"No such option {wanted!r}: {_one_of(long.values())}."
    return _no_such("option", wanted, long[near])


def _begun(word: str, ctx: click.Context) -> Optional[str]:
    """The long name of the option that ``--o`` is with one dash, or of the only one that begins so."""
    named = [parameter.opts for parameter in ctx.command.get_params(ctx)]
    short = [opts for opts in named if f"-{word}" in opts]
    meant = short or [opts for opts in named if any(name.startswith(f"--{word}") for name in opts)]
    long = [name for name in meant[0] if name.startswith("--")] if len(meant) == 1 else []
    return long[0].lstrip("-") if long else None


def _no_such(what: str, name: str, near: str) -> str:
    return f"No such {what} {name!r}: did you mean {near!r}?"


def _one_of(names: Iterable[str]) -> str:
    return f"there are {', '.join(names)}"


def _may_be_command(word: str) -> bool:
    """A word that is no path, no name on the hub and no option is likely a mistyped command."""
    return word.isalpha() and not os.path.lexists(word)


def _terminate(number: int, _frame: FrameType | None) -> None:
    """End through SystemExit, so that whatever is half-written is cleaned up as after Ctrl-C."""
    sys.exit(128 + number)
