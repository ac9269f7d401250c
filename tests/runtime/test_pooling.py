"""The last hidden layer through the binding, and the embedding that is made of it."""

from __future__ import annotations

import base64
import json
import math
import struct
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rk3588.errors import RuntimeFailure, UsageError
from rk3588.hostlib import SimModel
from rkruntime import pooling
from rkruntime.abi import HiddenStates
from rkruntime.binding import RKLLM

IDS = [9, 8, 7, 6, 5]


@pytest.fixture(scope="module")
def llm(tiny_bundles: Mapping[str, Path], rkllm_library: Path) -> Iterator[RKLLM]:
    model = tiny_bundles["w8a8"] / "model.sim.gguf"
    with RKLLM(model, library=rkllm_library, max_context_len=64, top_k=1, repeat_penalty=1.0) as llm:
        yield llm


def test_the_hidden_states_are_what_the_logits_come_from(llm: RKLLM, tiny_bundles: Mapping[str, Path]) -> None:
    states = llm.hidden_states(IDS)
    assert (states.tokens, states.size * 5) == (5, len(states.values))
    with SimModel(tiny_bundles["w8a8"] / "model.sim.gguf") as model:
        assert states.size == model.info.hidden
        logits = model.logits(IDS)
        found = model.linear("output.weight", np.array(states.values).reshape(5, -1), logits.shape[1])
    np.testing.assert_array_equal(found, logits)


def test_they_change_no_answer(llm: RKLLM) -> None:
    def answer() -> list[int]:
        return [token.id for token in llm.generate(IDS, 5)]

    before = answer()
    states = [llm.hidden_states(IDS).values for _ in range(2)]
    assert answer() == before and states[0] == states[1]


def test_a_run_that_fails_says_so(llm: RKLLM) -> None:
    with pytest.raises(UsageError, match="the prompt has 61 tokens"):
        llm.hidden_states([1] * 61)
    with pytest.raises(RuntimeFailure, match="ended the run with an error"):
        llm.hidden_states([1 << 20])
    with pytest.raises(UsageError, match="no LoRA called 'no'"):
        llm.hidden_states(IDS, "no")
    assert llm.hidden_states(IDS).tokens == 5


finite = st.floats(-(2.0**90), 2.0**90, width=32)


@given(st.data(), st.integers(1, 6), st.integers(1, 5))
def test_the_mean_of_length_one(data: st.DataObject, size: int, tokens: int) -> None:
    values = data.draw(st.lists(finite, min_size=size * tokens, max_size=size * tokens))
    kept = data.draw(st.integers(1, size))
    rows = np.array(values, np.float64).reshape(tokens, size)
    means = np.array([math.fsum(column) / tokens for column in rows.T])[:kept]
    states = HiddenStates(array("f", values), size)
    if not np.any(means) or not math.sqrt(math.fsum(float(m) ** 2 for m in means)):
        with pytest.raises(RuntimeFailure, match="no direction"):
            pooling.embedding(states, kept)
        return
    vector = pooling.embedding(states, kept)
    scaled = means / np.abs(means).max()
    np.testing.assert_allclose(vector, scaled / np.linalg.norm(scaled), 1e-6, 1e-9)
    shown = json.loads(pooling.as_json(vector))
    np.testing.assert_allclose(shown, vector, 1e-7, 1e-30)
    assert struct.unpack(f"<{kept}f", base64.b64decode(pooling.as_base64(vector))) == tuple(vector)


@pytest.mark.parametrize("values", [[0, 0], [math.nan, 1], [math.inf, 1], [math.inf, 1, -math.inf, 1]])
def test_what_has_no_direction(values: list[float]) -> None:
    with pytest.raises(RuntimeFailure, match="no direction"):
        pooling.embedding(HiddenStates(array("f", values), 2))


def test_more_dimensions_than_there_are() -> None:
    with pytest.raises(pooling.TooManyDimensions, match="have 2 dimensions: 3"):
        pooling.embedding(HiddenStates(array("f", [1, 2]), 2), 3)
