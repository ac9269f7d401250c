"""The texts that are read, and the windows of tokens they are read in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from rk3588 import files
from rk3588.errors import UsageError
from rk3588.hostlib import SimModel

WINDOW = 512  # tokens read at a time, each window from an empty context
BUILT_IN = "rkconvert's built-in text"
SCORES = ("all", "half")
_CHARACTERS = 16  # tried for each token wanted, before more of a text is read


class Text(NamedTuple):
    name: str
    text: str


def built_in() -> list[Text]:
    """Prose, explanations, talk and code in several languages; none of it is in the calibration data."""
    data = resources.files("rkconvert").joinpath("data/evaluation.json").read_text(encoding="utf-8")
    return [Text(f"{BUILT_IN} ({entry['language']})", entry["text"]) for entry in json.loads(data)]


def load(paths: Sequence[Path]) -> tuple[list[Text], str]:
    """The texts, and what they are called together in cards."""
    if not paths:
        return built_in(), BUILT_IN
    found = []
    for path in paths:
        try:
            text = files.read_text(path, files.TEXT, None, UsageError)
        except FileNotFoundError:
            raise UsageError(f"there is no {path}: give a text to measure with") from None
        if not text.strip():
            raise UsageError(f"{path} is empty: give a text to measure with")
        found.append(Text(path.name, text))
    return found, ", ".join(dict.fromkeys(text.name for text in found))


def windows(ids: list[int], size: int = WINDOW) -> list[list[int]]:
    return [part for start in range(0, len(ids), size) if len(part := ids[start : start + size]) > 1]


def read(model: SimModel, texts: Sequence[Text], tokens: int, window: int | None, score: str) -> list[list[int]]:
    """The windows of the first ``tokens`` tokens, of which each text has an equal share as far as it goes.

    A window that was asked for must be filled; the usual one may be shorter, but where only its second half is scored.
    """
    size = min(WINDOW, model.info.context_length) if window is None else window
    if size > model.info.context_length:
        raise UsageError(f"--window {size}: the model's context has {model.info.context_length} tokens")
    ids = [_first(model, text.text, tokens) for text in texts]
    whole = window is not None or score == "half"
    unit = size if score == "half" else 1
    if whole and (longest := max(map(len, ids))) < size:
        raise UsageError(
            f"{texts[0].name if len(texts) == 1 else 'the longest of the texts'} has {longest} tokens of the {tokens} "
            f"that --tokens allows, less than a window of {size}: give a longer text or a smaller --window"
        )
    shares = _shares([len(part) // unit for part in ids], tokens // unit)
    found = [part for own, share in zip(ids, shares) for part in windows(own[: share * unit], size)]
    if not found:
        name = texts[0].name if len(texts) == 1 else "the texts"
        raise UsageError(f"{name} and --tokens {tokens} are too short: there is no token to predict")
    bos = model.info.bos_id
    # As llama.cpp does: a model that expects a first token gets it in each window.
    return [[bos, *part[1:]] if model.info.add_bos and bos >= 0 else part for part in found]


def _first(model: SimModel, text: str, tokens: int) -> list[int]:
    """Of a long text only the beginning is made into tokens."""
    length = _CHARACTERS * (tokens + 8)
    while True:
        ids = model.tokenise(text[:length], add_bos=bool(model.info.add_bos))
        if len(ids) >= tokens + 8 or length >= len(text):
            return ids[:tokens]
        length *= 4


def _shares(lengths: Sequence[int], wanted: int) -> list[int]:
    """``wanted`` in equal parts, where what one cannot give the longer ones do."""
    found = [0] * len(lengths)
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for left, i in zip(range(len(lengths), 0, -1), order):
        found[i] = min(lengths[i], wanted // left)
        wanted -= found[i]
    return found
