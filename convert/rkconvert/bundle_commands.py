"""``rkconvert card``: one model card for several bundles."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rk3588 import bundle
from rk3588.errors import BundleError, UsageError, printable, shown

from .sources.base import CARD

_BUNDLES = click.argument("paths", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.command()
@_BUNDLES
def card(paths: tuple[Path, ...]) -> None:
    """Print one model card for several bundles of one model, to publish them together."""
    from .cards.card import Variant, model_card, original_card, read_base

    found = [bundle.read(path) for path in paths]
    names = dict.fromkeys(one.name for one in found)
    if len(names) > 1:
        raise UsageError(f"these are bundles of several models ({', '.join(names)}): a card is for one")
    base = read_base(paths[0] if found[0].file(CARD) else None)
    for note in base.notes:
        click.echo(printable(f"Note: {note}"), err=True)
    variants = [Variant.of(one) for one in found]
    try:
        text = model_card(variants, original_card(base))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BundleError(
            f"{bundle.MANIFEST} of {' or '.join(map(str, paths))} is not as rkconvert writes it ({error!r}): convert "
            "it again"
        ) from error
    click.echo(shown(text, sys.stdout), nl=False)
