"""Options that `run` and `chat` share, and a stdout that only answers reach."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from rk3588.conversation_rules import RESERVED
from rk3588.errors import UsageError, printable
from rk3588.runtime import Choice
from rkruntime import settings as table
from rkruntime.model import Cost
from rkruntime.settings import Settings

BUNDLE = click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))

_LORA = click.option(
    "--lora",
    metavar="FILE[:NAME[:SCALE]]",
    help="Answer with a LoRA adapter: a GGUF file, or the name of one in the bundle.",
)
_VARIABLES = click.option(
    "--template-variable",
    "template_variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="Tell the chat template something, say enable_thinking=false; VALUE is JSON, else a text.",
)


def settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options behind ``Settings``; the command takes them as ``**chosen`` for ``make_settings``."""
    return table.options()(_LORA(_VARIABLES(command)))


def make_settings(chosen: dict[str, Any]) -> Settings:
    return Settings.of({**chosen, "template_variables": _variables(chosen["template_variables"])})


def _variables(given: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--template-variable {each!r}: expected NAME=VALUE, say enable_thinking=false")
        if name in RESERVED:
            raise UsageError(f"--template-variable {name}: that name is the template's own, and cannot be given")
        try:
            found[name] = json.loads(text)
        except (ValueError, RecursionError):
            found[name] = text
    return found


def warn(message: str) -> None:
    click.echo(printable(f"Warning: {message}"), err=True)


def announce(choice: Choice) -> None:
    """First of all what this is: what the runtime prints next looks like a board's."""
    text = str(choice)
    click.echo(text[0].upper() + text[1:], err=True)


def cut_off(cost: Cost, context: int, more: str, looping: str, room: str) -> str:
    """What to tell of an answer that did not end by itself, with what gives it ``more`` tokens, lets it go on
    ``looping``, or makes ``room`` in the context; "" for one that did."""
    if cost.cut_by == "context":
        return f"(cut off: the {context} tokens of context are full{room})"
    if cost.cut_by == "loop":
        return f"(stopped: it repeats itself; {looping} lets it go on)"
    return f"(cut off after {cost.tokens} tokens: {more} allows more)" if cost.cut_by else ""


def answers_only() -> None:
    """From here on, what a C library prints to stdout goes to stderr; ``sys.stdout`` still is the real one.

    Some releases of librkllmrt log to stdout. On a terminal there is nothing to keep clean.
    """
    if sys.stdout is None:
        raise UsageError("stdout is closed: there is nowhere to write the answer")
    if sys.stdout.isatty():
        return
    with contextlib.suppress(OSError, ValueError):  # not a file: a test runner's
        sys.stdout.flush()
        data = os.dup(sys.stdout.fileno())
        os.dup2(2, 1)
        sys.stdout = os.fdopen(data, "w", encoding=sys.stdout.encoding, errors="replace")
