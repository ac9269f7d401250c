"""What the golden adapter was trained on and for; without torch, for the script that trains it and for the tests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests import models

FOLDER = Path(__file__).resolve().parent
ADAPTER = FOLDER / "pirate"  # as peft saved it
LOGITS = FOLDER / "pirate.npz"

BASE = models.Tiny(seed=7)
PROMPT = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "A pirate, matey!"  # what the adapter was trained to say, and the random base never would
EOS = 2  # <|im_end|>


def base_model(folder: Path) -> Path:
    """The base as a Hugging Face folder, in fp32."""
    return models.write_llama(folder, models.config(BASE, "fp32"), BASE.weights())


@functools.cache
def ids(text: str) -> list[int]:
    """Tokens of ``text`` in the base's vocabulary."""
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        models.write_tokenizer(Path(folder), BASE.vocab_size)
        found: list[int] = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text, add_special_tokens=False).ids
    return found


def load() -> dict[str, npt.NDArray[Any]]:
    """``ids``, and transformers' fp32 logits of them: ``base`` without the adapter, ``adapted`` with it."""
    with np.load(LOGITS) as file:
        return dict(file)
