"""The built-in text of ``rkconvert accuracy``: enough of it, in several languages, none of it calibrated with."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from rk3588.hostlib import SimModel
from rkconvert.accuracy import built_in
from tests import smollm2


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def runs(parts: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(parts[i : i + length]) for i in range(len(parts) - length + 1)}


def calibration() -> str:
    data = resources.files("rkconvert").joinpath("data/calibration.json").read_text(encoding="utf-8")
    return "\n".join(value for entry in json.loads(data) for value in entry.values())


def test_nothing_of_it_is_in_the_calibration_data() -> None:
    """Neither eight words in a row, nor, for languages without spaces, 24 characters."""
    other = calibration()
    for text in built_in():
        assert not runs(words(text.text), 8) & runs(words(other), 8), text.name
        assert not runs(list(text.text), 24) & runs(list(other), 24), text.name
    assert runs(words(other), 8) & runs(words(f"x {other[50:400]}"), 8)  # the comparison itself finds what is shared


def test_several_languages() -> None:
    names = [text.name for text in built_in()]
    languages = {name.partition("(")[2].rstrip(")") for name in names}
    assert {"English", "German", "French", "Spanish", "Russian", "Chinese", "Japanese"} <= languages
    assert all(name.startswith("rkconvert's built-in text (") for name in names)


@pytest.mark.model
def test_it_is_long_enough() -> None:
    path = smollm2.bundles(["w8a8"])["w8a8"] / "model.sim.gguf"
    with SimModel(path, vocab_only=True) as model:
        assert sum(len(model.tokenise(text.text)) for text in built_in()) >= 8000
