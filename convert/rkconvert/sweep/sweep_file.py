"""A sweep's file: YAML, and the cells it stands for."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rk3588 import files
from rk3588.errors import UsageError
from rk3588.nearest import nearest
from rk3588.yamltable import fault
from rkconvert.calibration import Generate, dataset_named
from rkconvert.commands import default_name
from rkconvert.request import NAME, TARGETS, Request
from rkconvert.sources import hub

from .cells import FLAGS, OPTIONS, Cell

NONE = "none"  # of the axes of what may be left out: without
_MOST = 1 << 20  # bytes of a sweep's file
_AXES = ("models", "dtypes", "hybrid_rates", "optimization_levels", "loras", "rotate")
_COMMON = ("targets", *OPTIONS, *FLAGS)
_PATHS = ("extra_qparams", "dataset", "custom_config")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "lora_mode": str, "npu_cores": int, "algorithm": str, "extra_qparams": str, "dataset": str, "device": str,
    "max_context": int, "load_dtype": str, "custom_config": str, "toolkit": str,
    **dict.fromkeys(FLAGS, bool), "dtypes": str, "hybrid_rates": (int, float), "optimization_levels": int,
    "loras": (str, type(None)), "rotate": (str, type(None)),
}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """All cells of a file."""

    file: Path
    cells: tuple[Cell, ...]


def load(file: Path, out: Path | None, community_names: bool = False) -> Sweep:
    """The sweep in ``file``; UsageError names the key that is wrong. Paths in it are relative to its folder."""
    return _Reader(file).sweep(out, community_names)


class _Reader:
    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            text = files.read_text(file, _MOST, None, UsageError)
            found = yaml.safe_load(text)
        except FileNotFoundError as error:
            raise UsageError(f"{file}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise UsageError(f"{file}, {fault(error, text)}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
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
        place = out or (self._path("out", self.values["out"]) if "out" in self.values else None)
        if place is None:
            raise UsageError(f"{self.file} does not say where to write: add 'out', or give -o")
        common = self._common(community_names)
        cells = []
        axes = (self._models(), *(self._axis(name, default) for name, default in _DEFAULTS.items()))
        for (model, name), dtype, rate, level, adapter, rotate in itertools.product(*axes):
            request = replace(
                common,
                dtypes=(dtype,),
                hybrid_rate=float(rate),
                optimization_level=level,
                loras=(self._adapter(adapter),) if adapter not in (None, NONE) else (),
                rotate=None if rotate == NONE else rotate,
            )
            request = replace(request, lora_mode=common.lora_mode if request.loras else None)
            request.check()
            adapters = request.adapters
            chosen = f"{name}-{adapters[0].name}" if adapters else name
            cells.append(Cell(model, chosen, request, place.absolute()))
        return Sweep(self.file, tuple(_without_clashes(self.file, cells)))

    def _common(self, community_names: bool) -> Request:
        found: dict[str, Any] = {}
        for key in _COMMON:
            if key in self.values and key != "targets":
                value = self.values[key]
                self._check(key, value)
                found[key] = self._option(key, value)
        targets = self._list("targets", self.values.get("targets", ["sim"]))
        wrong = [target for target in targets if target not in TARGETS]
        if wrong:
            raise UsageError(f"{self.file}: unknown target {wrong[0]!r}: {nearest(str(wrong[0]), TARGETS)}")
        return Request(targets=tuple(targets), **{**found, **({"community_names": True} if community_names else {})})

    def _option(self, key: str, value: Any) -> Any:
        named = dataset_named(value) if key == "dataset" else None
        if isinstance(named, Generate):
            return named
        return self._path(key, value) if key in _PATHS else value

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
            path = self._path("models", mapping["model"])
            on_hub = not path.exists() and hub.parse(mapping["model"])
            model = mapping["model"] if on_hub else str(path)
            name = mapping.get("name") or _name(model)
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise UsageError(f"{self.file}: {name!r} cannot be a model's name: letters, digits, '.', '_' and '-'")
            found.append((model, name))
        return found

    def _adapter(self, text: str) -> str:
        """``ADAPTER[:NAME[:SCALE]]``, the path from the file's folder on."""
        return str(self._path("loras", text))

    def _list(self, key: str, value: Any) -> list[Any]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise UsageError(f"{self.file}: {key!r} is empty or missing")
        return values

    def _check(self, key: str, value: Any) -> None:
        kind = _KINDS[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"{self.file}: {key!r} cannot be {value!r}")

    def _path(self, key: str, value: Any) -> Path:
        """From the file's folder on."""
        if not isinstance(value, str) or "\0" in value:
            raise UsageError(f"{self.file}: {key!r} cannot be {value!r}")
        return self.folder / os.path.expanduser(value)  # noqa: PTH111  Path.expanduser raises for unknown users


_DEFAULTS: dict[str, list[Any]] = {
    "dtypes": ["w8a8"], "hybrid_rates": [0], "optimization_levels": [None], "loras": [None],
    "rotate": [None],
}  # fmt: skip


def _name(model: str) -> str:
    path = Path(model)
    wanted = None if path.exists() else hub.parse(model)
    if wanted and not wanted.file:
        return wanted.repository.split("/")[1]
    return default_name(Path(wanted.file) if wanted and wanted.file else path)


def _without_clashes(file: Path, cells: list[Cell]) -> list[Cell]:
    seen: dict[Path, Cell] = {}
    for cell in cells:
        if cell.folder in seen:
            raise UsageError(f"{file}: two cells would both become {cell.folder.name}: name the models apart")
        seen[cell.folder] = cell
    return cells
