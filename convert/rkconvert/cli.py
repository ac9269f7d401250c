"""``rkconvert``: what a Hugging Face folder or a GGUF file becomes a bundle with. Imports nothing heavy."""

from __future__ import annotations

from typing import NoReturn

import click

import rk3588
from rk3588 import lazy

_COMMANDS = {
    "build": ("rkconvert.commands:build", "Convert MODEL into bundles; the default command."),
    "sweep": ("rkconvert.sweep.commands:sweep", "Many bundles from one file: models x dtypes x rates x LoRAs."),
    "accuracy": ("rkconvert.accuracy.commands:accuracy", "Measure bundles against fp32, for manifest and model card."),
    "recommend": ("rkconvert.recommend.commands:recommend", "Say which dtype of MODEL a board should run, and why."),
    "card": ("rkconvert.bundle_commands:card", "One model card for several bundles of a model."),
    "toolkit": ("rkconvert.toolkit.commands:toolkit", "Rockchip's rkllm-toolkit: install, status, remove."),
}


@click.group(
    cls=lazy.LazyGroup,
    lazy=_COMMANDS,
    default="build",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)
@click.version_option(rk3588.__version__, prog_name="rkconvert")
def cli() -> None:
    """Convert language models for the RK3588.

    `rkconvert MODEL -o DIR --dtype w8a8` is short for `rkconvert build MODEL …`: see `rkconvert build --help`.
    """


def main() -> NoReturn:
    lazy.main(cli, "rkconvert")
