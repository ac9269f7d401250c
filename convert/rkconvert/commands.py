"""``rkconvert build``: a parser over ``build.convert``."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rk3588 import bundle, gguf, quant
from rk3588.errors import UsageError, printable, printable_json

from .adapters import lora
from .build import convert, with_dataset, write_checkpoint
from .calibration import dataset_named
from .cards.card import base_of, naming_note
from .dry_run import describe, render
from .plan import Plan
from .progress import shown
from .request import NAME, TARGETS, Request
from .rotation import options as rotation
from .rotation.prepare import prepared
from .sources import hub
from .sources.base import Origin
from .sources.hub import HubModel

# "SmolLM2-135M-Instruct.Q4_1" is a file of SmolLM2-135M-Instruct: its type is not part of the name.
_TYPE = re.compile(r"[.-](i?q\d\w*|b?f(16|32)|fp(16|32))$", re.IGNORECASE)
# What --smooth takes for its own; anything else behind it is MODEL.
_SHARE = re.compile(rf"[-+]?[0-9.]+(e[-+]?[0-9]+)?|nan|inf|{rotation.USUAL}", re.IGNORECASE)


@click.command(short_help="Convert MODEL into bundles; the default command.")
@click.argument("model", type=click.Path(), required=False, metavar="MODEL")
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write bundles into.")
@click.option(
    "--dtype", "dtypes", multiple=True, metavar="DTYPE", default=["w8a8"], show_default=True,
    help=f"One of {', '.join(quant.SCHEMES)}; give it again for another bundle.",
)  # fmt: skip
@click.option(
    "--target", "targets", type=click.Choice(TARGETS), multiple=True, default=["sim"], show_default=True,
    help="What the bundle runs on: the simulated runtime, a board, or given twice, both.",
)  # fmt: skip
@click.option(
    "--hybrid-rate", type=float, default=0.0, metavar="R", show_default=True,
    help="Mix layers with and without groups: a share of R has them, 0 <= R < 1.  [0: no mix]",
)  # fmt: skip
@click.option(
    "--rotate", is_flag=False, flag_value=rotation.HADAMARD, metavar="[KIND]",
    help=f"Turn the weights so that they quantise with less loss: {', '.join(rotation.KINDS)}.  [KIND: hadamard]",
)  # fmt: skip
@click.option(
    "--smooth", is_flag=False, flag_value=rotation.USUAL, metavar="[ALPHA]",
    help=f"Move outliers of activations into weights, 0 <= ALPHA <= 1 of each; with --rotate, where that leaves any.  "
    f"[ALPHA: {rotation.ALPHA}, with --rotate {rotation.ROTATED_ALPHA}]",
)  # fmt: skip
@click.option(
    "--emit-hf", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write the rotated or smoothed model as a Hugging Face folder of its family; without -o, nothing else.",
)  # fmt: skip
@click.option(
    "--emit-dtype", type=click.Choice(tuple(rotation.TYPES)), help="How its weights are stored.  [default: fp32]"
)
@click.option(
    "--lora", "loras", multiple=True, metavar="ADAPTER[:NAME[:SCALE]]",
    help="A folder of PEFT with a LoRA for MODEL; give it again for another.",
)  # fmt: skip
@click.option(
    "--lora-mode", type=click.Choice(lora.MODES),
    help="Keep each LoRA as a file to be chosen at run time, or merge them all into the weights.  [default: adapter]",
)  # fmt: skip
@click.option("--optimization-level", type=int, metavar="0|1", help="rkllm-toolkit's.  [default: 1]")
@click.option("--npu-cores", type=int, metavar="N", help="Cores that a board runs the model on.  [default: 3]")
@click.option("--algorithm", metavar="NAME", help="rkllm-toolkit's quantized_algorithm.  [default: normal]")
@click.option("--extra-qparams", type=click.Path(path_type=Path), metavar="FILE", help="rkllm-toolkit's extra_qparams.")
@click.option(
    "--dataset", metavar="FILE|generate[:N]",
    help="To calibrate with (a board, --smooth, --rotate learned): conversations or texts (.json, .jsonl, .txt), or N "
    "answers that the model itself writes (32; a file of that name is ./generate).  [default: a small built-in set]",
)  # fmt: skip
@click.option(
    "--chat-template", type=click.Path(path_type=Path), metavar="FILE",
    help="A Jinja template for a model that comes without one, or with another.",
)  # fmt: skip
@click.option("--device", metavar="cpu|cuda", help="What rkllm-toolkit computes on.  [default: cpu]")
@click.option("--max-context", type=int, metavar="N", help="Tokens that it is built for (toolkit 1.2.0 or newer).")
@click.option("--load-dtype", metavar="DTYPE", help="What the toolkit loads weights as: float32, float16, bfloat16.")
@click.option("--custom-config", type=click.Path(path_type=Path), metavar="FILE", help="Of a model it does not know.")
@click.option("--toolkit", metavar="VERSION", help="Which rkllm-toolkit.  [default: the one installed last]")
@click.option("--force", is_flag=True, help="Try what will likely fail in rkllm-toolkit.")
@click.option("--name", help="The model's name in the bundle.  [default: that of MODEL]")
@click.option("--community-names", is_flag=True, help="NAME-rk3588-DTYPE-opt-1-hybrid-ratio-0.0, and so its .rkllm.")
@click.option("--overwrite", is_flag=True, help="Replace bundles that exist.")
@click.option(
    "--follow-links", is_flag=True,
    help="Read files of MODEL and ADAPTER through links that leave their folders, as to weights on another disk.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the result as JSON.")
def build(
    model: str | None,
    out: Path | None,
    dtypes: tuple[str, ...],
    targets: tuple[str, ...],
    loras: tuple[str, ...],
    name: str | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert MODEL into DIR/NAME-rk3588-DTYPE/.

    MODEL is a Hugging Face folder or a GGUF file, or one on the Hugging Face hub: USER/REPO[@REVISION] or
    USER/REPO:FILE.gguf[@REVISION], or the address of its page. Of a GGUF in parts, name any; the others lie beside it.
    HF_TOKEN, HF_HOME and HF_ENDPOINT are honoured.

    For the simulated runtime it has to be of a family known here: Llama, Mistral, Ministral, Qwen2, Qwen3, Phi, Gemma,
    SmolLM3, InternLM2 or MiniCPM. For a board (--target rk3588), Rockchip's rkllm-toolkit does the work, and the model
    may be any that it knows: see `rkconvert toolkit`. Known mistakes are told before it starts.

    The path of each bundle is a line on stdout.
    """
    if model is None and options["rotate"] not in (None, *rotation.KINDS):  # `--rotate MODEL`
        model, options["rotate"] = options["rotate"], rotation.HADAMARD
    if model is None and options["smooth"] is not None and not _SHARE.fullmatch(options["smooth"]):
        model, options["smooth"] = options["smooth"], rotation.USUAL
    if model is None:
        raise click.MissingParameter(param_hint="'MODEL'", param_type="argument")
    named = options.pop("dataset")
    dataset = None if named is None else dataset_named(named)
    request = Request(targets=targets, dtypes=dtypes, loras=loras, dataset=dataset, **options)
    request.check()
    if out is None and not dry_run and not request.emit_hf:
        raise UsageError("no folder to write into: give -o DIR, or --dry-run to see the plan")
    path, remote = Path(model), on_hub(model)
    chosen = name or default_name(path, remote.origin if remote else None)
    if not NAME.fullmatch(chosen):
        raise UsageError(f"{chosen!r} cannot be a bundle's name: give --name with letters, digits, '.', '_' and '-'")
    source = hub.peek(remote, request.opener) if remote else request.open(path)
    plan = request.plan(source, chosen, out if request.emit_hf else out or Path(), dry_run=dry_run)
    if dry_run:
        click.echo(printable_json(describe(plan)) if as_json else printable(render(plan)))
        return
    for note in plan.notes:
        _print_note(note)
    if remote:
        with shown() as progress:
            downloaded = hub.download(remote, progress, request.opener)
        plan = replace(plan, source=request.with_template(downloaded))
    base = base_of(plan.source)
    naming = naming_note(plan.name, base)
    for note in (*base.notes, *([naming] if naming else ())):
        _print_note(note)
    if plan.emit and not plan.artifacts:
        _print_note("no bundle is written: for one, give -o DIR as well")
    _convert_and_print(plan, as_json)


def on_hub(model: str) -> HubModel | None:
    """MODEL where it is none on this machine; UsageError where it is no name on the hub either."""
    if os.path.lexists(model):
        return None
    wanted = hub.parse(model)
    if wanted is None:
        raise UsageError(
            f"{model} does not exist: give a Hugging Face folder or a GGUF file on this machine, or USER/REPO on the "
            "Hugging Face hub"
        )
    return hub.find(wanted)


def _print_note(text: str) -> None:
    click.echo(printable(f"Note: {text}"), err=True)


def _convert_and_print(plan: Plan, as_json: bool) -> None:
    with shown() as progress:
        plan = prepared(with_dataset(plan, progress), progress)  # once for all dtypes
    told, done = dict[str, Any](name=plan.name), []
    if plan.emit:
        with shown() as progress:
            told["checkpoint"] = write_checkpoint(plan, progress)
        for file in told["checkpoint"].get("missing", ()):
            _print_note(f"config.json names {file}, the authors' code, which {plan.source.name} lacks: add it")
        if not as_json:
            click.echo(plan.emit.folder)
    for run in _runs(plan):
        with shown() as progress:
            folders = convert(run, progress)
        for artifact, folder in zip(run.artifacts, folders, strict=True):
            done.append({"dtype": artifact.scheme.name, "path": str(folder), "bytes": bundle.size(folder)})
            if not as_json:
                click.echo(folder)
    if as_json:
        click.echo(json.dumps({**told, "bundles": done}, indent=2))


def _runs(plan: Plan) -> list[Plan]:
    """All bundles in one pass over the model. Those for a board one by one, as each may take an hour: where one fails,
    those before it are kept."""
    if plan.board:
        return [replace(plan, artifacts=(artifact,)) for artifact in plan.artifacts]
    return [plan] if plan.artifacts else []


def default_name(model: Path, origin: Origin | None = None) -> str:
    """The name of the folder or repository, or of the file without suffix, part and type."""
    if origin and not origin.file:
        return origin.repository.split("/")[1]
    path = (Path(origin.file) if origin else model).absolute()
    if path.is_dir():
        return path.name
    part = gguf.part_of(path.name)
    return _TYPE.sub("", part.stem if part else path.name.removesuffix(path.suffix))
