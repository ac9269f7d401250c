"""A sweep's file, and the cells it stands for: one bundle each, with what is known of it before it is made."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rk3588 import bundle, files
from rk3588.errors import BundleError, RkError, UsageError
from rk3588.nearest import nearest
from rkconvert.adapters import lora
from rkconvert.commands import default_name
from rkconvert.plan import Plan, variant_name
from rkconvert.request import NAME, TARGETS, Request
from rkconvert.sources import hub
from rkconvert.sources.base import Checkpoint

NO_LORA = "none"
_MOST = 1 << 20  # bytes of a sweep's file
_AXES = ("models", "dtypes", "hybrid_rates", "optimization_levels", "loras")
_OPTIONS = ("lora_mode", "npu_cores", "algorithm", "extra_qparams", "dataset", "device")
_FLAGS = ("force", "community_names", "follow_links")
_COMMON = ("targets", *_OPTIONS, *_FLAGS)
_PATHS = ("extra_qparams", "dataset")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "lora_mode": str, "npu_cores": int, "algorithm": str, "extra_qparams": str, "dataset": str, "device": str,
    **dict.fromkeys(_FLAGS, bool), "dtypes": str, "hybrid_rates": (int, float), "optimization_levels": int,
    "loras": (str, type(None)),
}  # fmt: skip


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
        for option in ("optimization_level", *_OPTIONS):
            value = getattr(self.request, option)
            if value is not None:
                found.append(f"--{option.replace('_', '-')}={value}")
        flags = [name for name in _FLAGS if getattr(self.request, name)]
        return found + [f"--{name.replace('_', '-')}" for name in flags]

    def facts(self) -> dict[str, Any]:
        """Where it stands in the sweep."""
        return {
            "model": self.model, "name": self.name, "dtype": self.dtype, "hybrid_rate": self.request.hybrid_rate,
            "optimization_level": self.level, "lora": self.lora or None, "path": str(self.folder),
        }  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """All cells of a file."""

    file: Path
    cells: tuple[Cell, ...]


@dataclass
class Sources:
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


def load(file: Path, out: Path | None, community_names: bool = False) -> Sweep:
    """The sweep in ``file``; UsageError names the key that is wrong. Paths in it are relative to its folder."""
    return _Reader(file).sweep(out, community_names)


class _Reader:
    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            found = yaml.safe_load(files.read_text(file, _MOST, None, UsageError))
        except FileNotFoundError as error:
            raise UsageError(f"{file}: {error.strerror}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UsageError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(found, dict):
            raise UsageError(f"{file} holds no mapping: it needs 'models' and whatever they are to be made into")
        self.values: Mapping[str, Any] = found
        known = (*_AXES, *_COMMON, "out")
        for key in found:
            if key not in known:
                raise UsageError(f"{file}: unknown key {key!r}: {nearest(str(key), known)}")

    @cached_property
    def folder(self) -> Path:
        return self.file.absolute().parent

    def sweep(self, out: Path | None, community_names: bool) -> Sweep:
        place = out or (self.folder / self._text("out", self.values["out"]) if "out" in self.values else None)
        if place is None:
            raise UsageError(f"{self.file} does not say where to write: add 'out', or give -o")
        common = self._common(community_names)
        cells = []
        axes = (self._models(), *(self._axis(name, default) for name, default in _DEFAULTS.items()))
        for (model, name), dtype, rate, level, adapter in itertools.product(*axes):
            request = replace(
                common,
                dtypes=(dtype,),
                hybrid_rate=float(rate),
                optimization_level=level,
                loras=(self._adapter(adapter),) if adapter not in (None, NO_LORA) else (),
            )
            request = replace(request, lora_mode=common.lora_mode if request.loras else None)
            request.check()
            adapters = request.adapters
            chosen = f"{name}-{adapters[0].name}" if adapters else name
            cells.append(Cell(model, chosen, request, place.absolute()))
        return Sweep(self.file, tuple(_distinct(self.file, cells)))

    def _common(self, community_names: bool) -> Request:
        found: dict[str, Any] = {}
        for key in _COMMON:
            if key in self.values and key != "targets":
                value = self.values[key]
                self._check(key, value)
                found[key] = self.folder / value if key in _PATHS else value
        targets = self._list("targets", self.values.get("targets", ["sim"]))
        wrong = [target for target in targets if target not in TARGETS]
        if wrong:
            raise UsageError(f"{self.file}: unknown target {wrong[0]!r}: {nearest(str(wrong[0]), TARGETS)}")
        return Request(targets=tuple(targets), **{**found, **({"community_names": True} if community_names else {})})

    def _axis(self, key: str, default: list[Any]) -> list[Any]:
        values = self._list(key, self.values.get(key, default))
        for value in values if key in self.values else ():
            self._check(key, value)
        return values

    def _models(self) -> list[tuple[str, str]]:
        found = []
        for entry in self._list("models", self.values.get("models", [])):
            mapping = entry if isinstance(entry, dict) else {"model": entry}
            if set(mapping) - {"model", "name"} or not isinstance(mapping.get("model"), str):
                form = "a path, a name on the hub, or {model: …, name: …}"
                raise UsageError(f"{self.file}: {entry!r} is no model: give {form}")
            path = self.folder / Path(mapping["model"]).expanduser()
            model = str(path) if path.exists() else mapping["model"]
            name = mapping.get("name") or _name(model)
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise UsageError(f"{self.file}: {name!r} cannot be a model's name: letters, digits, '.', '_' and '-'")
            found.append((model, name))
        return found

    def _adapter(self, text: str) -> str:
        """``ADAPTER[:NAME[:SCALE]]``, the path from the file's folder on."""
        return str(self.folder / Path(text).expanduser())

    def _list(self, key: str, value: Any) -> list[Any]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise UsageError(f"{self.file}: {key!r} is empty or missing")
        return values

    def _check(self, key: str, value: Any) -> None:
        kind = _KINDS[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"{self.file}: {key!r} cannot be {value!r}")

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise UsageError(f"{self.file}: {key!r} cannot be {value!r}")
        return value


_DEFAULTS: dict[str, list[Any]] = {
    "dtypes": ["w8a8"], "hybrid_rates": [0], "optimization_levels": [None], "loras": [None],
}  # fmt: skip


def _name(model: str) -> str:
    path = Path(model)
    wanted = None if path.exists() else hub.parse(model)
    if wanted and not wanted.file:
        return wanted.repository.split("/")[1]
    return default_name(Path(wanted.file) if wanted and wanted.file else path)


def _distinct(file: Path, cells: list[Cell]) -> list[Cell]:
    seen: dict[Path, Cell] = {}
    for cell in cells:
        if cell.folder in seen:
            raise UsageError(f"{file}: two cells would both become {cell.folder.name}: name the models apart")
        seen[cell.folder] = cell
    return cells


def is_made(cell: Cell) -> bool:
    """Whether the cell's bundle is there; BundleError where its folder holds something else."""
    if not cell.folder.exists():
        return False
    manifest = bundle.read(cell.folder).manifest
    if _identity(manifest) != _wanted(cell):
        raise BundleError(f"{cell.folder} exists already and is not what this sweep makes: remove it, or change 'out'")
    return True


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a cell's bundle from others, out of its manifest."""
    toolkit, adapters = manifest.get("toolkit", {}), manifest.get("lora", {})
    return {
        "name": manifest["name"],
        "dtype": manifest["dtype"],
        "targets": sorted(manifest["artifacts"]),
        "hybrid_rate": manifest.get("hybrid", {}).get("rate", 0.0),
        "lora": [(a["name"], a["scale"]) for a in adapters.get("adapters", ())],
        "lora_mode": adapters.get("mode"),
        **{key: toolkit.get(key) for key in ("optimization_level", "npu_cores", "algorithm")},
        "dataset": toolkit.get("dataset", {}).get("name"),
    }


def _wanted(cell: Cell) -> dict[str, Any]:
    request, board = cell.request, cell.request.board
    adapters = request.adapters
    return {
        "name": cell.name,
        "dtype": cell.dtype,
        "targets": sorted(request.targets),
        "hybrid_rate": request.hybrid_rate,
        "lora": [(a.name, a.scale) for a in adapters],
        "lora_mode": (request.lora_mode or lora.MODES[0]) if adapters else None,
        "optimization_level": board.optimization_level if board else None,
        "npu_cores": board.npu_cores if board else None,
        "algorithm": board.algorithm if board else None,
        "dataset": (board.dataset.name if board.dataset else "built-in") if board else None,
    }
