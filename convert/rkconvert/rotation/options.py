"""What ``--rotate``, ``--smooth`` and ``--emit-hf`` ask for, and what is told of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rk3588.errors import CheckpointError

HADAMARD, LEARNED = "hadamard", "learned"
KINDS = (HADAMARD, LEARNED)
ALPHA, ROTATED_ALPHA = 0.5, 0.35  # of --smooth; the second, of up and down alone, lost least of those that were tried
USUAL = "usual"  # --smooth without a number
SEED = 0
KEY = "rkconvert_rotation"  # of a config.json that --emit-hf wrote
# By --emit-dtype: what a safetensors file and what torch calls it.
TYPES = {"fp32": "F32", "bf16": "BF16"}
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
DIGITS = 16  # of the digest in the name of a basis
_BASIS = re.compile(rf"[a-z]{{1,32}}-[0-9a-f]{{{DIGITS}}}")


@dataclass(frozen=True)
class Rotate:
    """How the matrices are made."""

    kind: str = HADAMARD
    seed: int = SEED

    @property
    def suffix(self) -> str:
        """What a bundle's name says of it."""
        return "-rotated" if self.kind == HADAMARD else f"-rotated-{self.kind}"

    def facts(self, digest: str = "0" * DIGITS) -> dict[str, Any]:
        """For the plan and the manifest; ``digest`` is that of the matrices, where they are made already."""
        return {"kind": self.kind, "seed": self.seed, "matrices": ["R1", "R2"], "basis": f"{self.kind}-{digest}"}


@dataclass(frozen=True)
class Smooth:
    """How much of an outlier goes from activations into weights: 0 nothing, 1 all of it."""

    alpha: float = ALPHA
    rotated: bool = False  # beside a rotation

    @property
    def suffix(self) -> str:
        """What a bundle's name says of it."""
        usual = ROTATED_ALPHA if self.rotated else ALPHA
        return "-smooth" + ("" if self.alpha == usual else f"{self.alpha:g}")

    def facts(self) -> dict[str, Any]:
        """For the plan and the manifest."""
        return {"alpha": self.alpha}


@dataclass(frozen=True)
class Emit:
    """A Hugging Face folder to write."""

    folder: Path
    dtype: str = "fp32"


def read_facts(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a config.json says of a rotation that its weights have already; {}: nothing."""
    found = settings.get(KEY)
    if found is None:
        return {}
    if not (
        isinstance(found, dict)
        and set(found) <= set(Rotate().facts())
        and isinstance(found.get("basis"), str)
        and _BASIS.fullmatch(found["basis"])
        and found.get("kind") == found["basis"].partition("-")[0]
        and type(found.get("seed", 0)) is int
        and found.get("matrices") in (["R1"], ["R1", "R2"])
    ):
        raise CheckpointError(f"{where}: {KEY} is not what rkconvert --emit-hf writes there: get the folder again")
    return dict(found)
