"""What the tensors of a checkpoint are called in ours: which layers each holds, and in which rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rk3588.families import BY_KV_HEAD, Family, Fused

from .model import ModelConfig

_LAYERS = "model.layers."


class Part(NamedTuple):
    """Rows of a checkpoint's tensor that are one of ours: ``rows`` of them in runs of ``run``, the first of which
    begins at row ``first``, each ``step`` rows after the one before."""

    name: str
    rows: int
    first: int
    run: int
    step: int

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """The rows in the checkpoint's tensor, in our order."""
        starts = self.first + self.step * np.arange(self.rows // self.run)
        return (starts[:, None] + np.arange(self.run)).reshape(-1)


class Names:
    """The names of one model's tensors in a Hugging Face checkpoint or, with ``gguf``, in a GGUF file."""

    def __init__(self, family: Family, config: ModelConfig, *, gguf: bool = False) -> None:
        self.family, self._gguf = family, gguf
        self._kv_heads = config.kv_heads
        self._shapes: Mapping[str, tuple[int, ...]] = config.tensors()

    def parts(self, name: str) -> list[Part]:
        """Our tensors in the checkpoint's tensor ``name``; [] where it is none of this model's."""
        module, _, ending = name.rpartition(".")
        if ending not in ("weight", "bias"):
            return []
        if self._gguf:
            block, kind = (module[: module.rfind(".") + 1], module.rpartition(".")[2])
            fused = self.family.gguf_fused.get(kind)
            whole = self._fused(fused, ending, block) if fused else []
            return whole or self._stacked((kind,), ending, block)
        if module in self.family.top:
            return self._stacked((self.family.top[module],), ending, "")
        layer, _, part = module.removeprefix(_LAYERS).partition(".")
        if not module.startswith(_LAYERS) or not layer.isdecimal() or str(int(layer)) != layer:
            return []
        block = f"blk.{layer}."
        if part in self.family.parts:
            return self._stacked((self.family.parts[part],), ending, block)
        if part in self.family.fused:
            return self._fused(self.family.fused[part], ending, block)
        return []

    def _fused(self, fused: Fused, ending: str, block: str) -> list[Part]:
        found = self._stacked(fused.parts, ending, block)
        if fused.order != BY_KV_HEAD:
            return found
        runs = [part.rows // self._kv_heads for part in found]
        firsts = [sum(runs[:i]) for i in range(len(runs))]
        return [
            part._replace(first=first, run=run, step=sum(runs))
            for part, first, run in zip(found, firsts, runs, strict=True)
        ]

    def _stacked(self, kinds: tuple[str, ...], ending: str, block: str) -> list[Part]:
        """One behind the other."""
        names = [f"{block}{kind}.{ending}" for kind in kinds]
        if not all(name in self._shapes for name in names):
            return []
        found, first = [], 0
        for name in names:
            rows = self._shapes[name][0]
            found.append(Part(name, rows, first, rows, rows))
            first += rows
        return found

    def in_file(self, name: str) -> str:
        """What our tensor ``name`` is called there, or the tensor that it is a part of."""
        stem, _, ending = name.rpartition(".")
        if self._gguf:
            block, _, kind = stem.rpartition(".")
            fused = next((t for t, f in self.family.gguf_fused.items() if kind in f.parts and t != kind), kind)
            return ".".join(filter(None, (block, fused, ending)))
        for theirs, ours in self.family.top.items():
            if ours == stem:
                return f"{theirs}.{ending}"
        _, layer, kind = stem.split(".")
        whole = {kind: theirs for theirs, fused in self.family.fused.items() for kind in fused.parts}
        own = {ours: theirs for theirs, ours in self.family.parts.items()}
        return f"{_LAYERS}{layer}.{own.get(kind) or whole[kind]}.{ending}"
