"""Values from outside by their types: the core's reader, and what the daemon and the converter say in its words."""

from __future__ import annotations

from typing import Any

import pytest

from rk3588.errors import CheckpointError, RequestRefused
from rkconvert.architectures.fields import Fields as CheckpointFields
from rkruntime.daemon.fields import Fields as RequestFields


@pytest.mark.parametrize(
    ("method", "value", "of_a_request", "of_a_checkpoint"),
    [
        ("whole", True, "a number", "a whole number from 1 to 1048576"),
        ("whole", "5", "a number", "a whole number from 1 to 1048576"),
        ("number", True, "a number", "a number above zero"),
        ("number", [1], "a number", "a number above zero"),
        ("flag", 1, "true or false", "true or false"),
        ("flag", "true", "true or false", "true or false"),
        ("mapping", [], "an object", "an object or null"),
    ],
)
def test_what_is_of_another_type_is_named(method: str, value: Any, of_a_request: str, of_a_checkpoint: str) -> None:
    with pytest.raises(RequestRefused, match=f"'x' has to be {of_a_request}") as refused:
        getattr(RequestFields({"x": value}), method)("x")
    assert refused.value.param == "x"
    with pytest.raises(CheckpointError, match=f"config.json: 'x' is .*, expected {of_a_checkpoint}"):
        getattr(CheckpointFields({"x": value}, "config.json"), method)("x")


def test_what_is_null_is_left_out() -> None:
    request, checkpoint = RequestFields({"x": None}), CheckpointFields({"x": None}, "config.json")
    assert (request.whole("x"), request.flag("x"), dict(request.mapping("x")), len(request)) == (None, False, {}, 0)
    assert (checkpoint.whole("x", 3), checkpoint.flag("x", True), checkpoint.mapping("x").values) == (3, True, {})
    with pytest.raises(CheckpointError, match=r"config\.json lacks 'x', which this model needs"):
        checkpoint.whole("x")


def test_a_default_that_cannot_be_is_refused_as_a_value_is() -> None:
    """A head's size that follows from others may be 0."""
    with pytest.raises(CheckpointError, match=r"config\.json: 'head_dim' is 0, expected a whole number from 1"):
        CheckpointFields({}, "config.json").whole("head_dim", 0)
