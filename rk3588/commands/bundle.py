"""``rk3588 bundle show|verify``: what a bundle says of itself, and whether it still is that."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Callable, Optional

import click

from rk3588 import bundle as bundles
from rk3588 import lazy
from rk3588.bundle import Bundle
from rk3588.errors import printable, printable_json
from rk3588.sampling import asks, settle

_LONGEST_ITEM = 200  # characters: a file with its hash is shorter
_BUNDLE = click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))


@click.group(cls=lazy.LazyGroup)
def bundle() -> None:
    """Show and verify bundles: the folders that rkconvert writes."""


@bundle.command()
@_BUNDLE
@click.option("--json", "as_json", is_flag=True, help="The whole manifest, as JSON.")
def show(path: Path, as_json: bool) -> None:
    """What a bundle is, and what was done to make it."""
    found = bundles.read(path)
    click.echo(printable_json(found.manifest) if as_json else printable(describe(found)))


@bundle.command()
@_BUNDLE
def verify(path: Path) -> None:
    """Hash every file and compare with what the manifest says; prints the bundle's path when all is well.

    A file that the manifest does not list is named, and fails it.
    """
    found = bundles.read(path)
    progress = _Progress(sum(entry["size"] for entry in found.manifest["files"]))
    try:
        bundles.verify(found, progress.add)
    finally:
        progress.end()
    files = len(found.manifest["files"])
    click.echo(printable(f"{found.name} ({found.dtype}): all {files} files are as they were written"), err=True)
    click.echo(path)


def describe(found: Bundle) -> str:
    """The manifest for people: nested tables indented, files last."""
    facts = {key: value for key, value in found.manifest.items() if key not in ("schema", "files")}
    whose = "as the model asks" if asks(found.sampling) else "by default: the model asks for nothing"
    drawn = f"{settle(found.sampling, {})} ({whose})"
    lines = [*_lines(facts), f"{'answers are drawn':<20} {drawn}", "files"]
    for entry in found.manifest["files"]:
        lines.append(f"  {entry['size'] / 1e6:9.1f} MB  {entry['path']}")
    return "\n".join(lines)


def _lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", *_lines(value, indent + "  ")]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines += [f"{indent}{key}"]
            for item in value:
                lines += _item(item, indent + "  ")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(f"{indent}{key:<20} {shown}")
    return lines


def _item(item: Any, indent: str) -> list[str]:
    """One of a list: on a line where that is not long, else a table with a dash before its first row."""
    text = json.dumps(item, ensure_ascii=False)
    if len(text) <= _LONGEST_ITEM or not isinstance(item, dict):
        return [indent + text]
    first, *rest = _lines(item, indent + "  ")
    return [f"{indent}- {first.lstrip(' ')}", *rest]


class _Progress:
    """Percent hashed, on one line of stderr if that is a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.shown = total, 0, -1
        self.write: Optional[Callable[[str], Any]] = sys.stderr.write if sys.stderr.isatty() else None

    def add(self, size: int) -> None:
        self.done += size
        percent = 100 * self.done // max(self.total, 1)
        if self.write and percent != self.shown:
            self.shown = percent
            self.write(f"\rhashing {percent:3d} %")
            sys.stderr.flush()

    def end(self) -> None:
        if self.write and self.shown >= 0:
            self.write("\r\x1b[K")
            sys.stderr.flush()
