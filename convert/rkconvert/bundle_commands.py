"""``rkconvert accuracy`` and ``rkconvert card``: what is done with bundles once they are made."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import click

from rk3588 import bundle, files
from rk3588.errors import BundleError, UsageError, printable, shown

from . import progress as progressing
from .signals import deferred_interrupts
from .sources.base import CARD

_BUNDLES = click.argument("paths", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.command()
@_BUNDLES
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="What to read.  [default: built in]")
@click.option("--tokens", type=click.IntRange(min=2), default=2048, show_default=True, help="How many of its tokens.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one for each bundle.")
def accuracy(paths: tuple[Path, ...], text: Path | None, tokens: int, as_json: bool) -> None:
    """Measure bundles against fp32 on the simulated runtime, and note it in manifest and model card.

    The fp32 bundle of the same model is to lie beside each, or to be among them.
    """
    from . import accuracy as measuring

    read, called = text_to_read(text)
    found = [bundle.read(path) for path in paths]
    rows = []
    with deferred_interrupts() as check, progressing.shown() as progress:
        for one in found:
            reference = measuring.reference_for(one, found)

            def step(done: int, total: int, label: str = f"measuring {one.path.absolute().name}") -> None:
                check()
                progress(label, done, total)

            step(0, tokens)
            result = measuring.measure(one, reference, read, called, tokens, step)
            measuring.record(one, result)
            rows.append({"path": str(one.path), "dtype": one.dtype, **asdict(result)})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    names = [Path(row["path"]).absolute().name for row in rows]
    width = max(map(len, names))
    click.echo(f"{'bundle':<{width}} {'perplexity':>10} {'KL to fp32':>11} {'top-1':>7}")
    for name, row in zip(names, rows):
        figures = f"{row['perplexity']:>10.3f} {row['divergence']:>11.6f} {row['agreement']:>7.1%}"
        click.echo(f"{name:<{width}} {figures}")


def text_to_read(path: Path | None) -> tuple[str, str]:
    """The text, and what it is called in cards."""
    if path is None:
        data = resources.files("rkconvert").joinpath("data/calibration.json").read_text(encoding="utf-8")
        pairs = [f"{entry['prompt']}\n{entry['answer']}" for entry in json.loads(data)]
        return "\n\n".join(pairs), "rkconvert's built-in text"
    try:
        return files.read_text(path, files.TEXT, None, UsageError), path.name
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: give a text to measure with") from None


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
