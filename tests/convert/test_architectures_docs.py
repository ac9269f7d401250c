"""docs/architectures.md says what the table of families says."""

from __future__ import annotations

import re

from rk3588.families import FAMILIES
from rkconvert import commands
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


def test_help_names_every_family_that_is_converted() -> None:
    text = commands.build.help or ""
    titles = {re.match("[A-Za-z]+", family.title)[0] for family in FAMILIES if not family.refused}  # type: ignore[index]
    assert {title for title in titles if title not in text} == set()


def test_each_tensor_has_one_name_in_a_checkpoint() -> None:
    """So that what is written of a model has the names that its family reads."""
    for family in FAMILIES:
        for names in (family.top, family.parts):
            assert len(set(names.values())) == len(names), (family.title, names)
