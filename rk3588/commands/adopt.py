"""``rk3588 adopt``: a bundle of a ``.rkllm`` that somebody else made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import click

from rk3588.commands.converting import converter


@click.command("adopt")
@click.argument("file", metavar="FILE.rkllm|hf:USER/REPO[:FILE]")
@click.option(
    "--base", metavar="MODEL",
    help="What it was made from: a folder, a GGUF file or USER/REPO on the hub.  [default: what lies beside it]",
)  # fmt: skip
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), default=".", help="Where to write it.")
@click.option("--name", help="The model's name in the bundle.  [default: that of the file]")
@click.option("--dtype", metavar="DTYPE", help="Where its name does not say it, or says what is wrong.")
@click.option("--toolkit-version", metavar="X.Y.Z", help="Of the rkllm-toolkit that wrote it, where nothing says so.")
@click.option(
    "--chat-template", type=click.Path(path_type=Path), metavar="FILE",
    help="A Jinja template for a model that comes without one, or with another.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists.")
@click.option("--follow-links", is_flag=True, help="Read files of MODEL through links that leave its folder.")
@click.option("--force", is_flag=True, help="Though size, dtype, base and toolkit do not fit each other.")
@click.option("--json", "as_json", is_flag=True, help="The bundle and the claims, as JSON.")
def command(out: Optional[Path], **options: Any) -> None:
    """Make a bundle of a .rkllm that somebody else made, to deploy, predict and serve it as any other.

    What such a file is, only names tell: chip, dtype, hybrid rate, optimisation level and toolkit are read from those
    of the file, its repository and its revision, and from the text that newer files end with. The bundle has them as
    claims. Tokenizer, chat template and generation settings are those of MODEL, of which no weights are downloaded.
    The address of a page on the hub does for a name as well.

    The bundle's path is a line on stdout.
    """
    converter("rkconvert.adoption.commands", "a .rkllm is adopted").run(out=out, **options)
