"""A cell of a sweep: one bundle, with what is known of it before it is made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rk3588.errors import RkError, UsageError
from rkconvert.adapters import lora
from rkconvert.plan import Plan, variant_name
from rkconvert.request import Request
from rkconvert.sources import hub
from rkconvert.sources.base import Checkpoint

# What the cells of a sweep have in common, by the names of build's options.
OPTIONS = (
    "lora_mode", "npu_cores", "algorithm", "extra_qparams", "dataset", "device", "max_context", "load_dtype",
    "custom_config", "toolkit",
)  # fmt: skip
FLAGS = ("force", "community_names", "follow_links")


@dataclass(frozen=True)
class Cell:
    """One bundle to make. ``request`` is that of ``rkconvert build``; ``name`` tells LoRAs apart."""

    model: str  # a path or a name on the hub
    name: str
    request: Request
    out: Path

    @property
    def dtype(self) -> str:
        return self.request.dtypes[0]

    @property
    def level(self) -> int:
        return 1 if self.request.optimization_level is None else self.request.optimization_level

    @property
    def lora(self) -> str:
        return lora.parse(self.request.loras[0]).name if self.request.loras else ""

    @property
    def folder(self) -> Path:
        request = self.request
        rate, community = request.hybrid_rate, request.community_names
        return self.out / variant_name(self.name, self.dtype, self.level, rate, community, request.suffix)

    def arguments(self) -> list[str]:
        """Of ``rkconvert build``, with whole paths."""
        found = [self.model, "--name", self.name, "-o", str(self.out), "--dtype", self.dtype, "--json"]
        found += [f"--target={target}" for target in self.request.targets]
        found += [f"--lora={adapter}" for adapter in self.request.loras]
        found += [f"--hybrid-rate={self.request.hybrid_rate}"]
        for option in ("optimization_level", "rotate", *OPTIONS):
            value = getattr(self.request, option)
            if value is not None:
                found.append(f"--{option.replace('_', '-')}={value}")
        flags = [name for name in FLAGS if getattr(self.request, name)]
        return found + [f"--{name.replace('_', '-')}" for name in flags]

    def facts(self) -> dict[str, Any]:
        """Where it stands in the sweep."""
        return {
            "model": self.model, "name": self.name, "dtype": self.dtype, "hybrid_rate": self.request.hybrid_rate,
            "optimization_level": self.level, "lora": self.lora or None,
            "rotate": self.request.rotate, "path": str(self.folder),
        }  # fmt: skip


@dataclass
class OpenedModels:
    """Each model, opened once for all its cells; what is wrong with one is kept as well."""

    _opened: dict[tuple[str, Any], Checkpoint | RkError] = field(default_factory=dict)

    def plan(self, cell: Cell) -> Plan:
        """What ``rkconvert build`` would plan for this cell; RkError where it would refuse it."""
        return replace(cell.request, overwrite=True).plan(self.source(cell), cell.name, cell.out)

    def source(self, cell: Cell) -> Checkpoint:
        """The cell's model; RkError where there is none. Of one on the hub, weights cannot be read from it."""
        key = (cell.model, cell.request.opener)
        if key not in self._opened:
            try:
                self._opened[key] = _open(cell.model, cell.request)
            except RkError as error:
                self._opened[key] = error
        source = self._opened[key]
        if isinstance(source, RkError):
            raise source
        return source


def _open(model: str, request: Request) -> Checkpoint:
    if os.path.lexists(model):
        return request.open(Path(model))
    wanted = hub.parse(model)
    if wanted is None:
        raise UsageError(f"{model} does not exist")
    return hub.peek(hub.find(wanted), request.opener)
