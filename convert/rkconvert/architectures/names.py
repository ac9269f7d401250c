"""What the tensors of a Hugging Face checkpoint are called in ours: which layers each holds, and in which rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .families import BY_KV_HEAD, Family, Fused
from .model import ModelConfig

_LAYERS = "model.layers."


class Part(NamedTuple):
    """Rows of a checkpoint's tensor that are one of ours: ``rows`` of them in runs of ``run``, the first of which
    begins at row ``first``, each ``step`` rows after the one before."""

    name: str
    rows: int
    first: int = 0
    run: int = 0  # 0: all in one run
    step: int = 0

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """The rows in the checkpoint's tensor, in our order."""
        run = self.run or self.rows
        starts = self.first + (self.step or run) * np.arange(self.rows // run)
        return (starts[:, None] + np.arange(run)).reshape(-1)


def parts_of(name: str, family: Family, config: ModelConfig) -> list[Part]:
    """Our tensors in the checkpoint's tensor ``name``; [] where it is none of a model of this family."""
    module, _, ending = name.rpartition(".")
    if ending not in ("weight", "bias"):
        return []
    if module in family.top:
        return _known([family.top[module]], ending, config, "")
    layer, _, part = module.removeprefix(_LAYERS).partition(".")
    if not module.startswith(_LAYERS) or not layer.isdecimal() or str(int(layer)) != layer:
        return []
    block = f"blk.{layer}."
    if part in family.parts:
        return _known([family.parts[part]], ending, config, block)
    if part in family.fused:
        return fused_parts(family.fused[part], ending, config, block)
    return []


def fused_parts(fused: Fused, ending: str, config: ModelConfig, block: str) -> list[Part]:
    """The layers in one tensor that holds several."""
    found = _known(fused.parts, ending, config, block)
    if fused.order == BY_KV_HEAD:
        run = {part.name: part.rows // config.kv_heads for part in found}
        step = sum(run.values())
        firsts = np.cumsum([0, *run.values()])
        return [
            part._replace(first=int(first), run=run[part.name], step=step)
            for part, first in zip(found, firsts, strict=False)
        ]
    starts = np.cumsum([0, *(part.rows for part in found)])
    return [part._replace(first=int(first)) for part, first in zip(found, starts, strict=False)]


def _known(kinds: list[str] | tuple[str, ...], ending: str, config: ModelConfig, block: str) -> list[Part]:
    shapes = config.tensors()
    names = [f"{block}{kind}.{ending}" for kind in kinds]
    return [Part(name, shapes[name][0]) for name in names] if all(name in shapes for name in names) else []


def checkpoint_name(name: str, family: Family) -> str:
    """What our tensor ``name`` is called in a checkpoint, or the tensor that it is a part of."""
    stem, _, ending = name.rpartition(".")
    for theirs, ours in family.top.items():
        if ours == stem:
            return f"{theirs}.{ending}"
    _, layer, kind = stem.split(".")
    whole = {kind: theirs for theirs, fused in family.fused.items() for kind in fused.parts}
    own = {ours: theirs for theirs, ours in family.parts.items()}
    return f"{_LAYERS}{layer}.{own.get(kind) or whole[kind]}.{ending}"
