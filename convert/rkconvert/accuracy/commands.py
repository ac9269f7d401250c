"""``rkconvert accuracy``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rk3588 import bundle
from rk3588.bundle import Bundle
from rk3588.errors import printable
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
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one for each bundle and --act-scale.")
def accuracy(
    paths: tuple[Path, ...],
    texts: tuple[Path, ...],
    tokens: int,
    window: int | None,
    score: str,
    modes: tuple[str, ...],
    against: Path | None,
    as_json: bool,
) -> None:
    """Measure bundles of a model against fp32 on the simulated runtime, and note it in manifests and model cards.

    The fp32 bundle is to lie beside them, or to be among them. What was stopped goes on when it is called again.
    """
    from . import candidates, common_reference, load, measure, record

    read, called = load(texts)
    found = [bundle.read(path) for path in paths]
    wanted = MODES if "all" in modes else modes
    with deferred_interrupts() as check, progressing.shown() as progress:
        reference = common_reference(found, _tell) if against is None else bundle.read(against)

        def step(what: str, done: int, total: int) -> None:
            check()
            progress(what, done, total)

        step("opening models", 0, 1)
        results = measure(
            found, reference, read, tokens, name=called, window=window, score=score, act_scales=wanted, resume=True,
            step=step, tell=_tell,
        )  # fmt: skip
        rows = list(zip(candidates(found, wanted), results))
        for one in found:
            record(one, _to_record([result for row, result in rows if row.bundle is one]))
    if as_json:
        objects = [_object(row.bundle, result) for row, result in rows]
        click.echo(json.dumps(objects, indent=2))
    else:
        click.echo(printable(table([(row.bundle, result) for row, result in rows])))


def _tell(sentence: str) -> None:
    click.echo(printable(f"Note: {sentence}"), err=True)


def _to_record(results: Sequence[Accuracy]) -> Accuracy:
    """What a run without further settings has, else the first."""
    from .measuring import default_act_scale

    return next((result for result in results if result.act_scale == default_act_scale()), results[0])


def _object(found: Bundle, result: Accuracy) -> dict[str, Any]:
    return {"bundle": found.path.absolute().name, "path": str(found.path), "dtype": found.dtype, **result.as_dict()}


_HEAD = ("bundle", "activations", "perplexity", "KL", "median", "99 %", "largest", "top-1", "Δp RMS")


def table(rows: Sequence[tuple[Bundle, Accuracy]]) -> str:
    """One line for each; what stands behind ± is half of a 95 % interval."""
    lines = [_HEAD, *map(_cells, rows)]
    if len({result.act_scale for _, result in rows}) == 1:
        lines = [(line[0], *line[2:]) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
            for line in lines]  # fmt: skip
    one = rows[0][1]
    return "\n".join(
        [*text, "", f"{one.scored:,} tokens of {one.text}, against {one.reference}: perplexity "
         f"{_with_error(one, 'reference_perplexity', 3)}. KL in nats; ±: half of a 95 % interval."]
    )  # fmt: skip


def _cells(row: tuple[Bundle, Accuracy]) -> tuple[str, ...]:
    found, result = row
    return (
        found.path.absolute().name,
        result.act_scale,
        _with_error(result, "perplexity", 3),
        _with_error(result, "kl", 5),
        f"{result.kl_median:.5f}",
        f"{result.kl_p99:.4f}",
        f"{result.kl_max:.3f}",
        f"{result.top1:.1%}",
        f"{result.p_change_rms:.2%}",
    )


def _with_error(result: Accuracy, name: str, places: int) -> str:
    bounds = result.intervals.get(name)
    error = f" ± {(bounds[1] - bounds[0]) / 2:.{places}f}" if bounds else ""
    return f"{getattr(result, name):.{places}f}{error}"
