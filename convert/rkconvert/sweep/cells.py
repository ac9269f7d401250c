"""A cell of a sweep: one bundle, with what is known of it before it is made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rk3588 import bundle
from rk3588.errors import BundleError, RkError, UsageError
from rkconvert.adapters import lora
from rkconvert.plan import Plan, variant_name
from rkconvert.request import Request
from rkconvert.sources import hub
from rkconvert.sources.base import Checkpoint
from rkconvert.toolkit import releases

# What the cells of a sweep have in common, by the names of build's options.
OPTIONS = (
    "lora_mode", "npu_cores", "algorithm", "extra_qparams", "dataset", "device", "max_context", "load_dtype",
    "custom_config", "toolkit",
)  # fmt: skip
_BOARD_FACTS = ("optimization_level", "npu_cores", "algorithm", "max_context", "load_dtype")
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
        rate, community = self.request.hybrid_rate, self.request.community_names
        return self.out / variant_name(self.name, self.dtype, self.level, rate, community)

    def arguments(self) -> list[str]:
        """Of ``rkconvert build``, with whole paths."""
        found = [self.model, "--name", self.name, "-o", str(self.out), "--dtype", self.dtype, "--json"]
        found += [f"--target={target}" for target in self.request.targets]
        found += [f"--lora={adapter}" for adapter in self.request.loras]
        found += [f"--hybrid-rate={self.request.hybrid_rate}"]
        for option in ("optimization_level", *OPTIONS):
            value = getattr(self.request, option)
            if value is not None:
                found.append(f"--{option.replace('_', '-')}={value}")
        flags = [name for name in FLAGS if getattr(self.request, name)]
        return found + [f"--{name.replace('_', '-')}" for name in flags]

    def facts(self) -> dict[str, Any]:
        """Where it stands in the sweep."""
        return {
            "model": self.model, "name": self.name, "dtype": self.dtype, "hybrid_rate": self.request.hybrid_rate,
            "optimization_level": self.level, "lora": self.lora or None, "path": str(self.folder),
        }  # fmt: skip


@dataclass
class OpenedModels:
    """Each model, opened once for all its cells; what is wrong with one is kept as well."""

    _opened: dict[tuple[str, Any], Checkpoint | RkError] = field(default_factory=dict)

    def plan(self, cell: Cell) -> Plan:
        """What ``rkconvert build`` would plan for this cell; RkError where it would refuse it."""
        key = (cell.model, cell.request.opener)
        if key not in self._opened:
            try:
                self._opened[key] = _open(cell.model, cell.request)
            except RkError as error:
                self._opened[key] = error
        source = self._opened[key]
        if isinstance(source, RkError):
            raise source
        return replace(cell.request, overwrite=True).plan(source, cell.name, cell.out)


def _open(model: str, request: Request) -> Checkpoint:
    if os.path.lexists(model):
        return request.open(Path(model))
    wanted = hub.parse(model)
    if wanted is None:
        raise UsageError(f"{model} does not exist")
    return hub.peek(hub.find(wanted), request.opener)


def is_made(cell: Cell) -> bool:
    """Whether the cell's bundle is there; BundleError where its folder holds something else."""
    if not cell.folder.exists():
        return False
    manifest = bundle.read(cell.folder).manifest
    made = _facts_of(manifest)
    if cell.request.toolkit is None:
        made["toolkit"] = None  # any will do
    if made != _facts_wanted(cell):
        raise BundleError(f"{cell.folder} exists already and is not what this sweep makes: remove it, or change 'out'")
    return True


def _facts_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a cell's bundle from others, out of its manifest."""
    toolkit, adapters = manifest.get("toolkit", {}), manifest.get("lora", {})
    return {
        "name": manifest["name"],
        "dtype": manifest["dtype"],
        "targets": sorted(manifest["artifacts"]),
        "hybrid_rate": manifest.get("hybrid", {}).get("rate", 0.0),
        "lora": [(a["name"], a["scale"]) for a in adapters.get("adapters", ())],
        "lora_mode": adapters.get("mode"),
        **{key: toolkit.get(key) for key in _BOARD_FACTS},
        "toolkit": releases.of(str(toolkit.get("version", ""))).name,
        "dataset": toolkit.get("dataset", {}).get("name"),
    }


def _facts_wanted(cell: Cell) -> dict[str, Any]:
    request, board = cell.request, cell.request.board
    adapters = request.adapters
    return {
        "name": cell.name,
        "dtype": cell.dtype,
        "targets": sorted(request.targets),
        "hybrid_rate": request.hybrid_rate,
        "lora": [(a.name, a.scale) for a in adapters],
        "lora_mode": (request.lora_mode or lora.MODES[0]) if adapters else None,
        **{key: getattr(board, key) if board else None for key in _BOARD_FACTS},
        "toolkit": request.toolkit and releases.of(request.toolkit).name,
        "dataset": (board.dataset.name if board.dataset else "built-in") if board else None,
    }
