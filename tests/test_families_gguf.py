"""GGUF files of every family, as llama.cpp's converter writes them, beside the Hugging Face folders they come from.

What llama.cpp computes of the same files is compared by tests/golden_families/llama_cpp.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from rk3588 import quant, sim
from rk3588.errors import CheckpointError
from rkconvert.architectures.model import BASE_ROPE
from rkconvert.build import convert
from rkconvert.plan import make_plan
from rkconvert.sources.base import Source, open_source
from tests import models
from tests.golden_families import cases, gguf_files


def artifact(source: Source, out: Path) -> Path:
    (bundle,) = convert(make_plan(source, "tiny", out, [quant.scheme("fp32")], threads=1))
    return bundle / "model.sim.gguf"


def folder_of(name: str, folder: Path) -> Path:
    """The case as a Hugging Face folder that asks for what a GGUF file can say."""
    settings = {**gguf_files.CASES[name], **gguf_files.UNSAID.get(name, {})}
    return models.ends_as_llama_cpp(models.write_llama(folder, settings, gguf_files.weights(name)))


@pytest.mark.parametrize("name", gguf_files.CASES)
def test_a_file_gives_the_artifact_of_the_folder(name: str, tmp_path: Path) -> None:
    file = gguf_files.write(name, tmp_path / "tiny.gguf")
    found = artifact(open_source(file), tmp_path / "1")
    assert found.read_bytes() == artifact(open_source(folder_of(name, tmp_path / "m")), tmp_path / "2").read_bytes()
