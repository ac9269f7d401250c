"""A click group that imports a command when it is called, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, NoReturn, Optional

import click

from .errors import RkError, printable

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
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if self.default and args and args[0] not in {*self.list_commands(ctx), *own}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the map's texts: ``--help`` imports nothing."""
        rows = [(name, help_text) for name, (_, help_text) in self.lazy.items()]
        for name in super().list_commands(ctx):
            rows.append((name, self.commands[name].get_short_help_str()))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def main(command: click.Command, name: str) -> NoReturn:
    """Run a program: every failure is one line on stderr and an exit code, never a traceback of ours."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        result = command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left (| head): it knows why
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("Interrupted", INTERRUPTED)
    except RkError as error:
        _fail(f"Error: {error}", error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"Error: {where}{error.strerror or error}", 1)
    sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(printable(message), err=True)
    sys.exit(code)


def _terminate(number: int, _frame: FrameType | None) -> None:
    """End through SystemExit, so that whatever is half-written is cleaned up as after Ctrl-C."""
    sys.exit(128 + number)
