"""Adapters as PEFT saves them, made of random numbers and without peft."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests import models

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Weights = dict[str, npt.NDArray[np.float32]]


def settings(rank: int, alpha: float, targets: Sequence[str]) -> dict[str, Any]:
    """``adapter_config.json`` of a plain LoRA."""
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": "someone/tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def weights(
    tiny: models.Tiny, rank: int, targets: Sequence[str], seed: int = 0, ranks: Mapping[str, int] | None = None
) -> Weights:
    """A and B of every targeted layer by PEFT's names, as large beside the base that they change answers."""
    found: Weights = {}
    for name, shape in tiny.shapes().items():
        module = name.removesuffix(".weight")
        target = module.rsplit(".", 1)[-1]
        if target not in targets or len(shape) != 2:
            continue
        r = (ranks or {}).get(target, rank)
        random = np.random.default_rng([seed, zlib.crc32(module.encode())])
        a = random.standard_normal((r, shape[1])) / np.sqrt(shape[1])
        b = random.standard_normal((shape[0], r)) / np.sqrt(r)
        # Multiples of 2^-8, which fp16 holds exactly below 8.
        for side, value in (("A", a), ("B", b)):
            found[f"base_model.model.{module}.lora_{side}.weight"] = (np.rint(value * 256) / 256).astype(np.float32)
    return found


def peft_lora(
    folder: Path,
    tiny: models.Tiny,
    *,
    rank: int = 4,
    alpha: float = 8,
    targets: Sequence[str] = LINEAR,
    seed: int = 0,
    dtype: str = "fp32",
    ranks: Mapping[str, int] | None = None,
    **changes: Any,
) -> Path:
    """A folder with an adapter for ``tiny``; ``changes`` go into its adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**settings(rank, alpha, targets), **({"rank_pattern": dict(ranks)} if ranks else {}), **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    models.write_safetensors(folder / "adapter_model.safetensors", weights(tiny, rank, targets, seed, ranks), dtype)
    return folder
