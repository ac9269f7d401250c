"""Models of families that are not known here, for a board: taken as far as their headers tell, or refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rkconvert.bundle_texts import model_facts
from rkconvert.sources.opening import open_checkpoint
from tests import models
from tests.toolkit_double import Installed

TINY = models.Tiny()


def unknown(folder: Path, extra: dict[str, tuple[int, ...]], **settings: Any) -> Path:
    """A model with tensors of these shapes as well."""
    weights = TINY.weights() | {name: np.zeros(shape, np.float32) for name, shape in extra.items()}
    named = {"architectures": ["CohereForCausalLM"], "model_type": "cohere"}
    return models.write_llama(folder, {**models.config(TINY, "bf16"), **named, **settings}, weights, dtype="bf16")


@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (2, 3, 5), (2, 1, 3, 5)], ids=str)
def test_a_tensor_of_any_dimensions_counts_its_elements(tmp_path: Path, shape: tuple[int, ...]) -> None:
    source = open_checkpoint(unknown(tmp_path / "m", {"logit_scale": shape}))
    llama = sum(math.prod(shape) for shape in TINY.shapes().values())
    assert model_facts(source)["parameters"] == llama + math.prod(shape)


def test_a_model_with_a_scalar_is_planned_and_converted(toolkit: Installed, tmp_path: Path) -> None:
    model = unknown(tmp_path / "m", {"logit_scale": (), "experts": (2, 32, 64)}, architectures=["LlamaForCausalLM"])
    arguments = [model, "--target", "rk3588", "-o", tmp_path / "out"]
    planned = toolkit.rkconvert(*arguments, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert plan["bundles"][0]["npu_bytes_about"] >= plan["model"]["parameters"]
    done = toolkit.rkconvert(*arguments)
    assert done.returncode == 0, done.stderr
