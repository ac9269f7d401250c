"""``rkconvert build``: a parser over ``build.convert``."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import click

from rk3588 import bundle, quant
from rk3588.errors import CheckpointError, UsageError

from . import hub, lora
from . import plan as plans
from .build import convert
from .plan import Plan
from .progress import shown
from .report import render
from .sources.base import Source, open_source

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# "SmolLM2-135M-Instruct.Q4_1" is a file of SmolLM2-135M-Instruct: its type is not part of the name.
_TYPE = re.compile(r"[.-](i?q\d\w*|b?f(16|32)|fp(16|32))$", re.IGNORECASE)


@click.command(short_help="Convert MODEL into bundles; the default command.")
@click.argument("model", type=click.Path())
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write bundles into.")
@click.option(
    "--dtype", "dtypes", multiple=True, metavar="DTYPE", default=["w8a8"], show_default=True,
    help=f"One of {', '.join(quant.SCHEMES)}; give it again for another bundle from the same pass.",
)  # fmt: skip
@click.option("--target", type=click.Choice(["sim"]), default="sim", show_default=True, help="What the bundle runs on.")
@click.option(
    "--lora", "loras", multiple=True, metavar="ADAPTER[:NAME[:SCALE]]",
    help="A folder of PEFT with a LoRA for MODEL; give it again for another.",
)  # fmt: skip
@click.option(
    "--lora-mode", type=click.Choice(lora.MODES),
    help="Keep each LoRA as a file to be chosen at run time, or merge them all into the weights.  [default: adapter]",
)  # fmt: skip
@click.option("--name", help="The model's name in the bundle.  [default: that of MODEL]")
@click.option("--overwrite", is_flag=True, help="Replace bundles that exist.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the result as JSON.")
def build(
    model: str,
    out: Path | None,
    dtypes: tuple[str, ...],
    target: str,  # noqa: ARG001  (one choice so far)
    loras: tuple[str, ...],
    lora_mode: str | None,
    name: str | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert MODEL, of the Llama family, into DIR/NAME-rk3588-DTYPE/.

    MODEL is a Hugging Face folder or a GGUF file, or one on the Hugging Face hub: USER/REPO[@REVISION] or
    USER/REPO:FILE.gguf[@REVISION]. HF_TOKEN, HF_HOME and HF_ENDPOINT are honoured.

    All dtypes are made in one pass over the model. The path of each bundle is a line on stdout.
    """
    schemes = [quant.scheme(dtype) for dtype in dtypes]
    adapters = lora.parse_all(loras)
    if lora_mode and not adapters:
        raise UsageError("--lora-mode says what to do with a LoRA: give one with --lora ADAPTER")
    if out is None and not dry_run:
        raise UsageError("no folder to write into: give -o DIR, or --dry-run to see the plan")
    path, remote = Path(model), None
    if not path.exists():
        wanted = hub.parse(model)
        if wanted is None:
            raise UsageError(
                f"{model} does not exist: give a Hugging Face folder or a GGUF file on this machine, or USER/REPO on "
                "the Hugging Face hub"
            )
        remote = hub.find(wanted)
    chosen = name or default_name(path, remote)
    if not _NAME.fullmatch(chosen):
        raise UsageError(f"{chosen!r} cannot be a bundle's name: give --name with letters, digits, '.', '_' and '-'")
    source = hub.peek(remote) if remote else _open(path)
    plan = plans.make_plan(
        source, chosen, out or Path(), schemes, overwrite=overwrite,
        loras=[lora.read(adapter, source) for adapter in adapters], lora_mode=lora_mode or lora.MODES[0],
    )  # fmt: skip
    if dry_run:
        click.echo(json.dumps(plans.describe(plan), indent=2) if as_json else render(plan))
        return
    for note in plan.notes:
        click.echo(f"Note: {note}", err=True)
    if remote:
        with shown() as progress:
            plan = replace(plan, source=hub.download(remote, progress))
    _run(plan, as_json)


def _open(path: Path) -> Source:
    try:
        return open_source(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or path}: {error.strerror}") from error


def _run(plan: Plan, as_json: bool) -> None:
    with shown() as progress:
        folders = convert(plan, progress)
    if not as_json:
        for folder in folders:
            click.echo(folder)
        return
    done = [
        {"dtype": artifact.scheme.name, "path": str(folder), "bytes": bundle.size(folder)}
        for artifact, folder in zip(plan.artifacts, folders, strict=True)
    ]
    click.echo(json.dumps({"name": plan.name, "bundles": done}, indent=2))


def default_name(model: Path, remote: hub.HubModel | None = None) -> str:
    """The name of the folder or repository, or of the file without suffix and type."""
    if remote and not remote.origin.file:
        return remote.origin.repository.split("/")[1]
    path = (Path(remote.origin.file) if remote else model).absolute()
    return path.name if path.is_dir() else _TYPE.sub("", path.name.removesuffix(path.suffix))
