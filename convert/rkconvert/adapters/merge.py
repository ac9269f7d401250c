"""A Hugging Face folder with adapters merged into it, for rkllm-toolkit: the weights change, all else stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rk3588 import files
from rk3588.errors import CheckpointError
from rkconvert.artifact.block import Block
from rkconvert.artifact.reading import blocks
from rkconvert.sources.base import Source

from .lora import Lora


def write_checkpoint(source: Source, loras: Sequence[Lora], folder: Path, check: Callable[[], None]) -> Path:
    """A copy of ``source``'s folder in ``folder`` with ``loras`` added to the weights; returns ``folder``.

    In the checkpoint's own type, as peft's ``merge_and_unload`` saves it.
    """
    if source.kind != "huggingface":
        raise CheckpointError(
            f"{source.path}: a LoRA cannot be merged into a GGUF file for a board: convert from the Hugging Face model"
        )
    folder.mkdir()
    for file in source.path.iterdir():
        if file not in source.files and file.suffix not in (".bin", ".gguf", ".safetensors") and not file.is_dir():
            files.copy(file, folder / file.name, files.TOKENIZER, source.path, CheckpointError)
    for file in source.files:
        shutil.copyfile(file, folder / file.name)
        check()
    for name, tensor in source.tensors.items():
        changes = [(lora.pairs[name], lora.option.scale) for lora in loras if name in lora.pairs]
        if not changes:
            continue
        with (folder / tensor.file.name).open("r+b") as target:
            for row, raw in blocks(tensor):
                block = Block.decoded(tensor, row, raw)
                block.merge(changes)
                target.seek(tensor.place(row))
                target.write(block.encoded(tensor.kind).tobytes())
                check()
    return folder

