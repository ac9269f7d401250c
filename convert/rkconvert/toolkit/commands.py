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
@click.option("--python", "wanted", metavar="3.8|…|3.12|PATH", help="The interpreter.  [default: as the wheel needs]")
@click.option("--allow-unknown", is_flag=True, help="Take a wheel that is none of Rockchip's known ones.")
def install(package: Path, wanted: str | None, allow_unknown: bool) -> None:
    """Install rkllm-toolkit, 1.1.0 to 1.3.1, from a wheel, or from a folder with Rockchip's wheels or a Python package.

    It goes into a virtual environment under your data folder, with the packages it asks for from your package index
    or from beside the wheel. Other releases that are installed stay; the one installed last is used where `rkconvert
    build --toolkit` does not say which. x86-64 Linux only. The toolkit's path is printed when it works.
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
    """Which toolkits are installed, the one in use first; exit code 1 when none is."""
    found = installs.all_installed()[::-1]
    if as_json:
        facts = [{**each.facts(), "path": str(each.interpreter)} for each in found]
        click.echo(json.dumps({**facts[0], "others": facts[1:]} if facts else None, indent=2))
    for number, each in enumerate(found if not as_json else ()):
        md5 = f"MD5 {each.md5}, {'known' if each.known else 'not known'}" if each.md5 else "not known"
        use = "" if len(found) == 1 else ", in use" if number == 0 else f" (--toolkit {each.version})"
        click.echo(f"rkllm-toolkit {each.version}{use}\nfrom       {each.package} ({md5})")
        click.echo(f"Python     {each.python}: {each.interpreter}")
    if not found:
        if not as_json:
            click.echo(f"rkllm-toolkit is not installed: {installs.GET}", err=True)
        raise SystemExit(1)


@toolkit.command()
@click.argument("release", required=False)
def remove(release: str | None) -> None:
    """Take a release of the toolkit and its environment away, or all of them."""
    click.echo("removed" if installs.remove(release) else "there was no toolkit to remove", err=True)
