"""``rkconvert recommend``: a parser over measuring, prediction and advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from rk3588 import families, rkllm
from rk3588.boards import BoardType
from rk3588.commands import inventories
from rk3588.errors import CheckpointError, RkError, UsageError, printable, printable_json
from rk3588.predict import Workload
from rk3588.shape import Shape
from rkconvert import accuracy
from rkconvert.accuracy import Accuracy, Text
from rkconvert.commands import default_name, on_hub
from rkconvert.progress import shown
from rkconvert.request import Request
from rkconvert.signals import deferred_interrupts
from rkconvert.sources import hub
from rkconvert.sources.base import Source
from rkconvert.sources.hub import HubModel
from rkconvert.toolkit import preflight

from . import measuring
from .advice import Limits, Row
from .cpu import on_cpu
from .measuring import Costs
from .report import Report
from .variants import Variant, obstacle, possible, predicted

_PROMPT = 128  # tokens, whose first answer is predicted


@click.command()
@click.argument("model", type=click.Path())
@click.option("--board", "name", required=True, metavar="NAME", help="Board type or host: see `rk3588 board list`.")
@click.option("--ram", type=click.IntRange(1), metavar="GB", help="RAM of your board.  [the host's]")
@click.option("--min-tok-s", type=float, metavar="N", help="Decode at least so fast.")
@click.option("--max-kl", type=float, default=0.05, show_default=True, metavar="KL", help="KL from fp32 that may be.")
@click.option("--tokens", type=click.IntRange(min=2), default=1000, show_default=True, help="How many are read.")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="What is read.  [default: built in]")
@click.option("--bandwidth", type=float, metavar="GB/S", help="What decoding gets of the board's memory.")
@click.option("--predict-only", is_flag=True, help="Measure nothing: seconds, and no download of weights.")
@click.option("--follow-links", is_flag=True, help="Read files of MODEL through links that leave its folder.")
@click.option("--hosts", "file", type=click.Path(path_type=Path), help="Inventory, instead of ./hosts.yaml.")
@click.option("--json", "as_json", is_flag=True, help="One object, with the advice and every row.")
def recommend(
    model: str,
    name: str,
    ram: int | None,
    min_tok_s: float | None,
    max_kl: float,
    tokens: int,
    text: Path | None,
    bandwidth: float | None,
    predict_only: bool,
    follow_links: bool,
    file: Path | None,
    as_json: bool,
) -> None:
    """Say which dtype of MODEL a board should run, and why.

    \b
    rkconvert recommend MODEL --board rock-5b --ram 8 --min-tok-s 8

    Every dtype that an RK3588 runs, and mixes of them, is made in a temporary folder and measured beside fp32 on the
    simulated runtime; its speed and memory on the board are predicted. The advice is the fastest that fits the RAM and
    keeps --max-kl and --min-tok-s. Beside it stands what owners published of the other way, llama.cpp with 4-bit
    weights on the board's CPU.

    MODEL is what `rkconvert build` takes. Where this machine has too little memory to measure it, it is only predicted.
    """
    limits = Limits(0, min_tok_s, max_kl)
    _check(limits)
    board = inventories.load(file).board(name)
    limits = replace(limits, ram_gb=_ram(board, ram))
    texts, called = accuracy.load([text] if text else [])
    remote, source = _opened(model, Request(follow_links=follow_links))
    sizes = _sizes(source)
    work = _workload(sizes, bandwidth)
    variants, notes = possible(source)
    predictions = {variant: predicted(variant, sizes, work, board) for variant in variants}
    fitting = [variant for variant, found in predictions.items() if found.memory.fits(limits.ram_gb)]
    costs = measuring.costs(source, fitting, tokens) if fitting and not predict_only else None
    notes += [*dict.fromkeys(note for found in predictions.values() for note in found.notes), *_for_a_board(source)]
    if fitting and not predict_only and not costs:
        notes.insert(0, "Not measured: this machine has too little memory to run the model, in fp16 too.")
    accuracies = _measured(source, remote, costs, texts, called, tokens) if costs else {}
    report = Report(
        model=default_name(Path(model), source.origin),
        parameters=sizes.total_params,
        board=board,
        limits=limits,
        prompt=work.prompt,
        context=work.context,
        rows=[Row(v, found, accuracies.get(v), obstacle(v, source)) for v, found in predictions.items()],
        cpu=on_cpu(sizes, work.context),
        notes=notes,
        tokens=tokens if costs else 0,
        text=called if costs else "",
        reference=costs.reference if costs else "",
    )
    click.echo(printable_json(report.facts()) if as_json else printable(report.render()))


def _check(limits: Limits) -> None:
    for option, value in (("--min-tok-s", limits.min_tok_s), ("--max-kl", limits.max_kl)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{option} {value:g} has to be more than 0")


def _sizes(source: Source) -> Shape:
    if source.shape is None:
        raise CheckpointError(
            f"{source.path}: {source.architecture} is no family that predictions know: they know {families.predicted()}"
        )
    return source.shape


def _workload(sizes: Shape, bandwidth: float | None) -> Workload:
    context = min(rkllm.MAX_CONTEXT, sizes.context or rkllm.MAX_CONTEXT)
    prompt = min(_PROMPT, max(context - rkllm.CONTEXT_RESERVE, 1))
    return Workload(prompt=prompt, context=context, bandwidth_gb_s=bandwidth)


def _ram(board: BoardType, asked: int | None) -> int:
    if asked is not None:
        return board.with_ram(asked).ram_gb[0]
    if len(board.ram_gb) > 1:
        sold = ", ".join(map(str, board.ram_gb))
        raise UsageError(f"a {board.name} is sold with {sold} GB: say which with --ram GB")
    return board.ram_gb[0]


def _opened(model: str, request: Request) -> tuple[HubModel | None, Source]:
    """The model; one on the hub as far as its headers tell."""
    remote = on_hub(model)
    source = hub.peek(remote, request.opener) if remote else request.open(Path(model))
    assert isinstance(source, Source)
    return remote, source


def _for_a_board(source: Source) -> list[str]:
    """What rkllm-toolkit would say of the model, whatever the dtype."""
    try:
        likely, _ = preflight.check_model(source, (), Request().release)
    except RkError as error:
        return [f"For a board: {error}."]
    return [f"For a board: {each.error}." for each in likely]


def _measured(
    source: Source, remote: HubModel | None, costs: Costs, texts: Sequence[Text], called: str, tokens: int
) -> dict[Variant, Accuracy]:
    minutes = max(round(costs.seconds / 60), 1)
    click.echo(
        f"measuring {costs.variants} variants on {tokens:,} tokens: about {minutes} minute{'s'[: minutes > 1]}, "
        f"{costs.memory / 1e9:.1f} GB of memory and {costs.disk / 1e9:.1f} GB of disk for a while",
        err=True,
    )
    with deferred_interrupts() as check, shown() as progress:
        if remote:
            there = hub.download(remote, progress)
            assert isinstance(there, Source)
            source = there

        def step(done: int, total: int) -> None:
            check()
            progress("measuring", done, total)

        step(0, 1000)
        return measuring.measure(source, costs, texts, called, tokens, step)
