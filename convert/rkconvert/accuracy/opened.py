"""The models that are measured side by side, opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from rk3588 import quant
from rk3588.bundle import Bundle
from rk3588.hostlib import SimModel

Step = Callable[[str, int, int], None]  # told what is done, how many tokens of it are, and of how many
Tell = Callable[[str], None]


def default_act_scale() -> str:
    return os.environ.get("RKSIM_ACT_SCALE") or "token"


class Candidate(NamedTuple):
    """One row of what is found."""

    bundle: Bundle
    act_scale: str | None  # None: as RKSIM_ACT_SCALE says

    @property
    def effective(self) -> str:
        """What shares an activation scale: none of a dtype that quantises no activations."""
        return self.act_scale or (default_act_scale() if quant.scheme(self.bundle.dtype).quantised else "none")

    @property
    def has_tiles(self) -> bool:
        return self.effective == "tile64"


@dataclass(frozen=True)
class Opened:
    """The reference and those beside it; one that is the reference itself has its model."""

    reference: SimModel
    candidates: list[Candidate]
    models: list[SimModel]
    first: int  # of each window's tokens, the first whose next one is scored

    @property
    def evaluated(self) -> list[SimModel]:
        return [self.reference, *(model for model in self.models if model is not self.reference)]

    @property
    def bos(self) -> list[int]:
        """What each window begins with: nothing, or the first token of a model that wants one."""
        info = self.reference.info
        return [info.bos_id] if info.add_bos and info.bos_id >= 0 else []
