"""The twins of the releases after 1.1.1, their model, and what it computes when asked past their interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from rk3588 import hostlib
from rk3588.hostlib import SimModel
from tests.twins import NEWER, RELEASES, Twin


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    """With the template of ChatML."""
    return tiny_bundles["w8a8"] / "model.sim.gguf"


@pytest.fixture(scope="module")
def oracle(model: Path) -> SimModel:
    return hostlib.SimModel(model, threads=1)


@pytest.fixture(params=RELEASES)
def twin(request: pytest.FixtureRequest, twins: Callable[[str], Twin]) -> Twin:
    return twins(request.param)


@pytest.fixture(params=NEWER)
def newer(request: pytest.FixtureRequest, twins: Callable[[str], Twin]) -> Twin:
    return twins(request.param)
