"""What ``rk3588 adopt`` runs; its options stand in ``rk3588.commands.adopt``, where a board has them, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rk3588 import bundle, files
from rk3588.errors import printable, printable_json
from rkconvert.progress import shown

from . import claims, writing
from .adopt import Request, prepare


def run(*, follow_links: bool, as_json: bool, **options: Any) -> None:
    """Adopt, and print the bundle's path; notes go to stderr."""
    request = Request(**options)
    if follow_links and request.base:
        files.follow_links(Path(request.base))
    adoption = prepare(request)
    for note in adoption.notes:
        click.echo(printable(f"Note: {note}"), err=True)
    with shown() as progress:
        folder = writing.write(adoption, progress)
    if not as_json:
        click.echo(printable(str(folder)))
        return
    facts = {"name": adoption.name, "dtype": adoption.dtype, "path": str(folder), "bytes": bundle.size(folder)}
    said = {"claims": claims.facts(adoption.claims), "notes": list(adoption.notes)}
    click.echo(printable_json({**facts, **said}))
