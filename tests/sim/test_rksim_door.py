"""What librksim offers for measuring: activation scales by model, greedy continuations, what enters the first block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from rk3588 import hostlib
from rk3588.errors import SimError
from tests.reference import Reference

IDS = [5, 9, 200, 31, 77, 8, 120] * 10


@pytest.mark.parametrize("mode", hostlib.ACT_SCALES)
def test_activation_scales_of_an_opened_model(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """As RKSIM_ACT_SCALE says it, whatever that says, for several models at once."""
    path = tiny_bundles["w8a8_g128"] / "model.sim.gguf"
    monkeypatch.setenv("RKSIM_ACT_SCALE", mode)
    with hostlib.SimModel(path) as by_environment:
        wanted = by_environment.logits(IDS)
    monkeypatch.setenv("RKSIM_ACT_SCALE", next(other for other in hostlib.ACT_SCALES if other != mode))
    with hostlib.SimModel(path, act_scale=mode) as model, hostlib.SimModel(path) as other:
        assert (other.logits(IDS) != wanted).any()
        np.testing.assert_array_equal(model.logits(IDS), wanted)
        longer = model.logits(IDS * 3)  # a longer context makes a new session, of the same mode
    monkeypatch.setenv("RKSIM_ACT_SCALE", mode)
    with hostlib.SimModel(path) as by_environment:
        np.testing.assert_array_equal(by_environment.logits(IDS * 3), longer)


@pytest.mark.parametrize("flags", [2 + 4, 8 + 4, 16, 1 << 30])
def test_flags_that_are_none(tiny_bundles: Mapping[str, Path], flags: int) -> None:
    path = str(tiny_bundles["w8a8"] / "model.sim.gguf").encode()
    assert hostlib.library().rksim_open(path, 1, flags) is None
    assert b"unknown flags" in hostlib.library().rksim_last_error()


def fail(_done: int) -> None:
    raise ZeroDivisionError


def test_a_greedy_continuation_is_the_likeliest_token_each_time(tiny_bundles: Mapping[str, Path]) -> None:
    with hostlib.SimModel(tiny_bundles["w8a8"] / "model.sim.gguf") as model:
        text, told = list(IDS), list[int]()
        for _ in range(6):
            text.append(int(model.logits(text)[-1].argmax()))
        assert model.greedy(IDS, 6, told.append) == text[len(IDS) :] and told == [1, 2, 3, 4, 5, 6]
        assert model.greedy(IDS, 0) == []
        with pytest.raises(SimError, match="one token at least"):
            model.greedy([], 3)
        with pytest.raises(SimError):
            model.greedy([10**6], 3)
        with pytest.raises(ZeroDivisionError):
            model.greedy(IDS, 2, fail)


@pytest.mark.parametrize("dtype", ["w8a8", "fp32"])
def test_embedded_tokens_are_what_enters_the_first_block(tiny_bundles: Mapping[str, Path], dtype: str) -> None:
    path = tiny_bundles[dtype] / "model.sim.gguf"
    with hostlib.SimModel(path) as model:
        np.testing.assert_array_equal(model.embed(IDS), Reference(path).embed(IDS))
        with pytest.raises(SimError):
            model.embed([10**6])
