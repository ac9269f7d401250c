"""Calibration texts as tokens, for what is measured on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rk3588 import bundle, hostlib
from rkconvert.artifact.header import write_tokenizer
from rkconvert.calibration import Dataset
from rkconvert.sources.base import Source

_WINDOW = 512  # tokens of a sample that are read
MOST = 4096  # tokens in all: largest activations hardly change with more


def windows(source: Source, dataset: Dataset) -> list[list[int]]:
    """The samples' tokens, question and answer in one, from an empty context each."""
    vocabulary = source.vocabulary
    bos = [vocabulary.bos] if vocabulary.add_bos and vocabulary.bos is not None else []
    found: list[list[int]] = []
    with tempfile.TemporaryDirectory(prefix="rkconvert-") as folder:
        path = Path(folder) / bundle.VOCABULARY
        write_tokenizer(path, "calibration", vocabulary)
        with hostlib.SimModel(path, vocab_only=True) as tokenizer:
            for question, answer in dataset.samples:
                ids = tokenizer.tokenise(question + answer)
                ids = (ids if ids[:1] == bos else [*bos, *ids])[: min(_WINDOW, source.config.context_length)]
                left = MOST - sum(map(len, found))
                if ids and left > 0:
                    found.append(ids[:left])
    return found
