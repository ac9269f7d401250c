"""Options that `run` and `chat` share, and a stdout that only answers reach."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rk3588.errors import UsageError, printable
from rkruntime.model import Settings

BUNDLE = click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))

_OPTIONS = [
    click.option(
        "-c", "--context", type=click.IntRange(0), default=0, metavar="N",
        help="Tokens of context; 0, the default: the model's, but no more than the 4096 a board can use.",
    ),
    click.option("--beyond-board", is_flag=True, help="Allow a context above 4096 tokens."),
    click.option(
        "-n", "--max-tokens", type=click.IntRange(-1), default=-1, metavar="N",
        help="End an answer after N tokens; -1, the default: when it ends by itself or the context is full.",
    ),
    click.option("--temp", "temperature", type=click.FloatRange(0), metavar="T", help="Temperature; 0: greedy."),
    click.option("--top-k", type=click.IntRange(1), metavar="K", help="Draw from the K likeliest tokens; 1: greedy."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="P", help="Draw from this share."),
    click.option(
        "--repeat-penalty", type=click.FloatRange(0, min_open=True), metavar="X",
        help="Above 1 holds repetition down, 1 is none.",
    ),
    click.option(
        "--lora", metavar="FILE[:NAME[:SCALE]]",
        help="Answer with a LoRA adapter: a GGUF file, or the name of one in the bundle.",
    ),
    click.option(
        "--library", type=click.Path(path_type=Path), metavar="FILE",
        help="The librkllmrt.so to use, instead of RKLLM_LIBRARY, the simulated one, or the system's.",
    ),
]  # fmt: skip


def settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options behind ``Settings``; the command takes them as ``**chosen`` for ``Settings(**chosen)``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_settings(chosen: dict[str, Any]) -> Settings:
    if chosen["max_tokens"] == 0:
        raise UsageError("-n 0 asks for no answer: give a number above 0, or -1")
    return Settings(**chosen)


def warn(message: str) -> None:
    click.echo(printable(f"Warning: {message}"), err=True)


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
