"""What rkllm-toolkit is to do with a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rk3588 import bundle
from rkconvert.calibration import Dataset, Generate

from .install import Toolkit
from .options import BoardOptions


@dataclass(frozen=True)
class ToolkitJob:
    """Its options, what it calibrates with, and which toolkit it is. ``dataset`` may be still to be written."""

    options: BoardOptions
    dataset: Dataset | Generate
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
            **({"extra_qparams": _file(extra)} if extra else {}),
            "device": options.device,
            **({"max_context": options.max_context} if options.max_context else {}),
            **({"load_dtype": options.load_dtype} if options.load_dtype else {}),
            **({"custom_config": _file(options.custom_config)} if options.custom_config else {}),
            "dataset": self.dataset.facts(),
        }


def _file(path: Path) -> dict[str, str]:
    return {"name": path.name, "sha256": bundle.sha256(path)}
