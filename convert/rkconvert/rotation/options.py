"""What ``--rotate`` asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HADAMARD = "hadamard"
KINDS = (HADAMARD,)
SEED = 0


@dataclass(frozen=True)
class Rotate:
    """How the matrices are made. ``heads``: V and O are turned as well, by head (R2)."""

    kind: str = HADAMARD
    seed: int = SEED
    heads: bool = True

    @property
    def suffix(self) -> str:
        """What a bundle's name says of it."""
        return "-rotated" if self.kind == HADAMARD else f"-rotated-{self.kind}"

    def facts(self) -> dict[str, Any]:
        """For the plan and the manifest."""
        return {
            "kind": self.kind,
            "seed": self.seed,
            "matrices": ["R1", "R2"] if self.heads else ["R1"],
            "hidden_states": "rotated by R1, without the gains of the last norm",
        }
