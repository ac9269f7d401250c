"""``rkconvert toolkit install|status|remove``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rk3588 import lazy
from rkconvert.progress import shown
from rkconvert.signals import deferred_interrupts

from . import install as installs


@click.group(cls=lazy.LazyGroup)
def toolkit() -> None:
    """Rockchip's rkllm-toolkit, which writes models for a real board, in an interpreter of its own."""


@toolkit.command()
@click.argument("package", metavar="WHEEL-OR-PACKAGE-FOLDER", type=click.Path(path_type=Path))
@click.option("--python", "wanted", metavar="3.8|3.10|PATH", help="The interpreter.  [default: as the wheel needs]")
@click.option("--allow-unknown", is_flag=True, help="Take a wheel that is none of 1.1.1's known ones.")
def install(package: Path, wanted: str | None, allow_unknown: bool) -> None:
    """Install rkllm-toolkit 1.1.1 from a wheel, or from a folder with Rockchip's wheels or a Python package.

    It goes into a virtual environment under your data folder, with the packages it asks for from your package index
    or from beside the wheel. x86-64 Linux only. The toolkit's path is printed when it works.
    """
    chosen = installs.choose(package, wanted, allow_unknown)
    with deferred_interrupts() as check, shown() as progress:
        found = installs.install(chosen, progress, check)
    click.echo(f"rkllm-toolkit {found.version} under Python {found.python}", err=True)
    if not found.known:
        click.echo("Note: this is none of the wheels that rkconvert was written for; bundles will say so", err=True)
    click.echo(found.interpreter.parent.parent)


@toolkit.command()
@click.option("--json", "as_json", is_flag=True, help="The same as JSON; null when nothing is installed.")
def status(as_json: bool) -> None:
    """Which toolkit is installed; exit code 1 when none is."""
    found = installs.installed()
    if as_json:
        click.echo(json.dumps({**found.facts(), "path": str(found.interpreter)} if found else None, indent=2))
    elif found:
        md5 = f"MD5 {found.md5}, {'known' if found.known else 'not known'}" if found.md5 else "not known"
        click.echo(f"rkllm-toolkit {found.version}\nfrom       {found.package} ({md5})")
        click.echo(f"Python     {found.python}: {found.interpreter}")
    else:
        click.echo(f"rkllm-toolkit is not installed: {installs.GET}", err=True)
    if not found:
        raise SystemExit(1)


@toolkit.command()
def remove() -> None:
    """Take the toolkit and its environment away."""
    click.echo("removed" if installs.remove() else "there was no toolkit to remove", err=True)
