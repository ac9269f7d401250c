"""What can be asked of rkllm-toolkit for a board, and which bundles a call makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rkconvert.calibration import Generate

PLATFORM = "rk3588"
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class BoardOptions:
    """Arguments of rkllm-toolkit as a user gives them; the defaults are its own, but for ``dataset``. None: not given,
    as by whoever has a release that does not take it.
    """

    optimization_level: int = 1
    npu_cores: int = 3
    algorithm: str = "normal"
    extra_qparams: Path | None = None
    dataset: Path | Generate | None = None  # None: the built-in one
    device: str = "cpu"
    max_context: int | None = None
    load_dtype: str | None = None  # what load_huggingface calls dtype
    custom_config: Path | None = None
