"""What rkllm-toolkit is to do with a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rk3588 import bundle
from rkconvert.calibration import Dataset

from .install import Toolkit
from .options import BoardOptions


@dataclass(frozen=True)
class ToolkitJob:
    """Its options, what it calibrates with, and which toolkit it is."""

    options: BoardOptions
    dataset: Dataset
    toolkit: Toolkit

    def facts(self) -> dict[str, Any]:
        """For the plan and the manifest: what it is given, and which it is."""
        options = self.options
        extra = options.extra_qparams
        return {
            **self.toolkit.facts(),
            "optimization_level": options.optimization_level,
            "npu_cores": options.npu_cores,
            "algorithm": options.algorithm,
            **({"extra_qparams": {"name": extra.name, "sha256": bundle.sha256(extra)}} if extra else {}),
            "device": options.device,
            "dataset": self.dataset.facts(),
        }
