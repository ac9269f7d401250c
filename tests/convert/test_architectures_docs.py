"""docs/architectures.md says what the table of families says."""

from __future__ import annotations

from rk3588.families import FAMILIES
from rkconvert.architectures import rope
from tests import architectures_table


def test_the_table_is_the_code() -> None:
    text = architectures_table.DOCS.read_text(encoding="utf-8")
    assert architectures_table.with_table(text) == text, "run python -m tests.architectures_table"


def test_every_way_of_layers_has_words() -> None:
    kinds = {family.layer_kinds for family in FAMILIES} - {"full"}
    assert kinds == set(architectures_table._LAYER_KINDS)


def test_the_ways_of_scaling_rope_are_named() -> None:
    text = architectures_table.DOCS.read_text(encoding="utf-8")
    assert all(f"`{way}`" in text for way in rope._WAYS)
