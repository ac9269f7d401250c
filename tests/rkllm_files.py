"""Files that pass for a ``.rkllm`` as far as anybody can tell: random bytes of the size that a model has, with the text
that newer toolkits put behind the end."""

from __future__ import annotations

import random
from pathlib import Path

from rk3588 import quant, rkllm_file, shape
from tests import models


def base(folder: Path) -> Path:
    """A tiny Llama whose ``.rkllm`` is not too small to be one."""
    return models.tiny_llama(folder, hidden=256, vocab_size=2048)


def rkllm(path: Path, model: Path, *, dtype: str = "w8a8", toolkit: str = "", share: float = 1.0) -> Path:
    """The file for ``model``, ``share`` times as large as it should be; ``toolkit`` puts its version at the end."""
    text = f"rkllm-toolkit version: {toolkit}\0".encode() if toolkit else b""
    size = int(rkllm_file.expected_size(shape.load(model), quant.SCHEMES[dtype]) * share)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"RKLLM?" + random.Random(1).randbytes(size - len(text) - 6) + text)
    return path
