"""The boards that a command knows, with a word where a project's file stands before the user's own."""

from __future__ import annotations

from pathlib import Path

import click

from rk3588 import boards
from rk3588.boards import Boards
from rk3588.errors import UsageError, printable


def load(file: Path | None) -> Boards:
    """Catalogue and inventory, of ``file`` if it is given: ``--hosts``."""
    if file is not None and not file.exists():
        raise UsageError(f"--hosts {file}: there is no such file; `rk3588 board add --hosts FILE` makes one")
    known = boards.load(file)
    if known.instead_of:
        text = f"boards are those of ./{known.file} here, not of {known.instead_of} (--hosts FILE says which)"
        click.echo(printable(text), err=True)
    return known
