"""Which source a path is, a Hugging Face folder or a GGUF file, and the model in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rk3588 import bundle, files
from rk3588.errors import CheckpointError, WrongModel
from rk3588.gguf import part_of
from rk3588.mistaken import bundles_in, listed

from . import gguf_file, huggingface
from .base import Checkpoint, Source


def open_source(path: Path) -> Source:
    """The model at ``path``, as the simulated runtime computes it: a Hugging Face folder or a GGUF file."""
    return huggingface.read(path) if is_folder(path) else gguf_file.read(path)


def open_checkpoint(path: Path) -> Checkpoint:
    """The model at ``path``, of whatever architecture: a Hugging Face folder or a GGUF file."""
    return huggingface.read_any(path) if is_folder(path) else gguf_file.read_any(path)


def whole_models(names: Iterable[str]) -> list[str]:
    """The GGUF files to choose from among ``names``: of those in parts, the first part."""
    parts = {name: part_of(name) for name in names}
    return sorted({part.name(1) if part else name for name, part in parts.items()})


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a Hugging Face folder, and not a GGUF file; WrongModel when it is neither."""
    if path.is_dir():
        ggufs = whole_models(file.name for file in path.glob("*.gguf"))
        if (path / bundle.MANIFEST).exists():
            raise WrongModel(f"{path} is a bundle, which is converted already: give the model it was made from")
        if (path / "config.json").exists():
            return True
        if ggufs:
            raise WrongModel(f"{path} is a folder with GGUF files: give one of them: {listed(ggufs)}")
        if made := sorted(bundles_in(path, bundle.MANIFEST)):
            raise WrongModel(
                f"{path} is a folder with bundles ({listed(made)}), which are converted already: give the model they "
                "were made from"
            )
        return True
    with files.opened(path, None, CheckpointError) as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return False
    if path.suffix == ".safetensors":
        raise WrongModel(f"{path} is one file of a model: give the folder that holds it and its config.json")
    if path.suffix == ".rkllm":
        raise WrongModel(
            f"{path} is a .rkllm, which is converted already: give the model that it was made from, or make a bundle "
            "of it with `rk3588 adopt`"
        )
    raise WrongModel(f"{path} is neither a Hugging Face folder nor a GGUF file")
