"""``rkconvert accuracy``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rk3588 import bundle
from rk3588.bundle import Bundle
from rk3588.errors import TargetError, printable
from rkconvert import progress as progressing
from rkconvert.signals import deferred_interrupts

if TYPE_CHECKING:
    from .result import Accuracy

MODES = ("token", "tile64", "group")


@click.command()
@click.argument("paths", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="What to read, repeatable.  [default: built in, several languages]")  # fmt: skip
@click.option("--tokens", type=click.IntRange(2, 1 << 22), default=2048, show_default=True,
              help="How many of its tokens; of several texts equal parts.")  # fmt: skip
@click.option("--window", type=click.IntRange(min=3), metavar="N", help="Tokens read at a time.  [default: 512]")
@click.option("--score", type=click.Choice(["all", "half"]), default="all", show_default=True,
              help="All tokens, or the second half of each window, as llama-perplexity.")  # fmt: skip
@click.option("--act-scale", "modes", multiple=True, type=click.Choice([*MODES, "all"]),
              help="What shares an activation scale, repeatable.  [default: RKSIM_ACT_SCALE, or token]")  # fmt: skip
@click.option("--reference", "against", type=click.Path(path_type=Path), metavar="BUNDLE",
              help="What to compare with.  [default: the same model in fp32]")  # fmt: skip
@click.option("--choices", "asked", multiple=True, type=click.Path(path_type=Path), metavar="FILE.jsonl",
              help="Multiple choice, scored as lm-eval does, repeatable: query, choices, gold.")  # fmt: skip
@click.option("--figures", type=click.Path(path_type=Path), metavar="DIR",
              help="Draw KL, layers, and KL against speed, as PNG and SVG.")  # fmt: skip
@click.option("--brief", is_flag=True, help="Leave out greedy continuations and layers.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one for each bundle and --act-scale.")
def accuracy(
    paths: tuple[Path, ...],
    texts: tuple[Path, ...],
    tokens: int,
    window: int | None,
    score: str,
    modes: tuple[str, ...],
    against: Path | None,
    asked: tuple[Path, ...],
    figures: Path | None,
    brief: bool,
    as_json: bool,
) -> None:
    """Measure bundles of a model against fp32 on the simulated runtime, and note it in manifests and model cards.

    The fp32 bundle is to lie beside them, or to be among them. What was stopped goes on when it is called again.
    """
    from . import candidates, choices, common_reference, load, measure
    from . import figures as drawing
    from .tables import tables

    read, called = load(texts)
    if figures is not None:
        drawing.check(figures)
    questions = [choices.load(path, _tell) for path in asked]
    found = [bundle.read(path) for path in dict.fromkeys(paths)]
    wanted = MODES if "all" in modes else modes
    writable = [one for one in found if _may_note(one)]
    with deferred_interrupts() as check, progressing.shown() as progress:
        reference = common_reference(found, _tell) if against is None else bundle.read(against)

        def step(what: str, done: int, total: int) -> None:
            check()
            progress(what, done, total)

        step("opening models", 0, 1)
        try:
            results = measure(
                found, reference, read, tokens, name=called, window=window, score=score, act_scales=wanted,
                asked=questions, details=not brief, resume=True, step=step, tell=_tell,
            )  # fmt: skip
        except (KeyboardInterrupt, SystemExit):
            _tell("stopped: the same call goes on from the last window that was read")
            raise
        rows = list(zip(candidates(found, wanted), results))
        of = [(one, _to_record([result for row, result in rows if row.bundle is one])) for one in found]
        noted = [_note(one, result) for one, result in of if one in writable]
    shown = [(row.bundle, result) for row, result in rows]
    click.echo(json.dumps([_object(*each) for each in shown], indent=2) if as_json else printable(tables(shown)))
    for path in drawing.draw(figures, shown) if figures else []:
        click.echo(printable(f"drew {path}"), err=True)
    if not all(noted):
        raise SystemExit(1)


def _may_note(found: Bundle) -> bool:
    """Whether the bundle can be replaced by one that says what was measured: told before an hour of measuring."""
    folder = found.path.absolute()
    if os.access(folder, os.W_OK) and os.access(folder.parent, os.W_OK):
        return True
    _tell(f"{found.path} cannot be written to: what is measured is printed, and not noted in it")
    return False


def _note(found: Bundle, result: Accuracy) -> bool:
    """Whether it could be; if not, the table is still to be printed."""
    from . import record

    try:
        record(found, result)
    except (TargetError, OSError) as error:
        _tell(f"what was measured of {found.path} could not be noted in it: {error}")
        return False
    return True


def _tell(sentence: str) -> None:
    click.echo(printable(f"Note: {sentence}"), err=True)


def _to_record(results: Sequence[Accuracy]) -> Accuracy:
    """What a run without further settings has, else the first."""
    from .opened import default_act_scale

    return next((result for result in results if result.act_scale == default_act_scale()), results[0])


def _object(found: Bundle, result: Accuracy) -> dict[str, Any]:
    return {"bundle": found.path.absolute().name, "path": str(found.path), "dtype": found.dtype, **result.as_dict()}
