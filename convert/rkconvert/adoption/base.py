"""The model that a ``.rkllm`` was made of, as far as it is named: its tokenizer, template and generation settings."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rk3588 import files, templates
from rk3588.errors import CheckpointError, UsageError, WrongModel
from rkconvert.cards.card import read_base
from rkconvert.sources import hub
from rkconvert.sources.base import CARD, Checkpoint
from rkconvert.sources.huggingface import read_configuration
from rkconvert.sources.opening import is_folder, open_checkpoint
from rkconvert.tokenizers import folder as tokenizer_folder

from .rkllm_source import Rkllm

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def find(found: Rkllm, said: str | None) -> Checkpoint:
    """The model called ``said`` (--base), a folder, a GGUF file or a name on the hub; without it, the repository or
    the folder that ``found`` lies in, where that has all of it."""
    base = _named(said) if said is not None else _beside(found)
    if base.kind == "huggingface" and not any(file.name in _TOKENIZERS for file in base.copies):
        raise WrongModel(
            f"{base.origin or base.path} has no {' and no '.join(_TOKENIZERS)}: give another --base, the model that "
            f"{found.name} was made from"
        )
    return base


def _named(said: str) -> Checkpoint:
    said = said.removeprefix("hf:")
    if os.path.lexists(said):
        path = Path(said)
        try:
            if path.is_dir() and not files.exists(path / "config.json"):
                is_folder(path)  # which says what is better given
            return read_configuration(path) if path.is_dir() else open_checkpoint(path)
        except OSError as error:
            raise CheckpointError(f"cannot read {error.filename or path}: {error.strerror}") from error
    wanted = hub.parse(said)
    if wanted is None:
        named = said[:300] or repr(said)
        raise UsageError(f"--base {named} does not exist: give a model's folder, or USER/REPO on the hub")
    return hub.configuration(wanted)


def _beside(found: Rkllm) -> Checkpoint:
    names = found.repository.sizes if found.repository else ()
    if found.repository and "config.json" in names and any(name in names for name in _TOKENIZERS):
        return hub.configuration_in(found.repository)
    folder = found.path.parent if found.path else None
    if folder and files.exists(folder / "config.json") and any(files.exists(folder / name) for name in _TOKENIZERS):
        return read_configuration(folder)
    advice = "USER/REPO or a folder"
    if found.repository and CARD in names:
        told = read_base(found.repository.small(CARD).parent).facts.get("base_model")
        told = told[0] if isinstance(told, list) and len(told) == 1 else told
        if isinstance(told, str) and re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", told, re.ASCII):
            advice = f"its repository's card names {told}"
    raise UsageError(
        f"{found.name} holds no tokenizer and no chat template that can be read, and none lie beside it: say with "
        f"--base which model it was made from ({advice})"
    )


def template_of(base: Checkpoint, file: Path | None) -> str | None:
    """The chat template: of ``file``, where one is given (--chat-template), else the model's own."""
    if file is not None:
        text = templates.read(file)
        templates.check(text, str(file))
        return text
    if base.vocabulary is None and base.kind == "huggingface":  # of a tokenizer that is not known here
        options = tokenizer_folder.read(base.path / "tokenizer_config.json")
        return tokenizer_folder.template(base.path, options)[0]
    return base.vocabulary.chat_template if base.vocabulary else None
