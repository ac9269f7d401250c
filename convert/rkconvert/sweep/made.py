"""Whether a cell's bundle is there already: made of what the cell asks for, and not of something else of that name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rk3588 import bundle, files
from rk3588.errors import BundleError, CheckpointError
from rkconvert import calibration
from rkconvert.adapters import lora
from rkconvert.calibration import Generate
from rkconvert.sources import hub, hub_client
from rkconvert.toolkit import releases

from .cells import Cell, OpenedModels

_OPTIONS = ("optimization_level", "npu_cores", "algorithm", "device", "max_context", "load_dtype")
_FILES = ("extra_qparams", "custom_config")
Compared = Iterator[tuple[str, Any, Any]]  # what it is, as the manifest has it, as the cell asks for it


@dataclass
class MadeCells:
    """Files are hashed once for all cells. Which converter made a bundle does not tell cells apart, nor which toolkit
    where the sweep names none."""

    models: OpenedModels
    check: Callable[[], None] = lambda: None  # called while files are hashed; may raise
    _digests: dict[Path, str] = field(default_factory=dict)

    def has(self, cell: Cell) -> bool:
        """Whether the cell's bundle is there; BundleError where its folder holds something else."""
        if not cell.folder.exists():
            return False
        manifest = bundle.read(cell.folder).manifest
        for compared in (_of_request(manifest, cell), self._of_files(manifest, cell)):
            other = next((what for what, found, wanted in compared if found != wanted), None)
            if other:
                raise BundleError(
                    f"{cell.folder} exists already and is not what this sweep makes (another {other}): remove it, or "
                    "change 'out'"
                )
        return True

    def _of_files(self, manifest: Mapping[str, Any], cell: Cell) -> Compared:
        """What costs a look at files: sizes first, then hashes."""
        for option, entry in zip(cell.request.adapters, _adapters(manifest), strict=True):
            yield f"LoRA {option.name}", *self._compared(_mapping(entry, "source"), lora.files_of(option))
        board, toolkit = cell.request.board, _mapping(manifest, "toolkit")
        for name in _FILES:
            if file := getattr(board, name, None):
                yield name, _mapping(toolkit, name).get("sha256"), self._digest(file)
        on_hub = _on_hub(cell.model)
        if board and (board.dataset or not on_hub):  # the built-in one is rendered in the model's template
            yield "dataset", *self._datasets(cell, _mapping(toolkit, "dataset"))
        if cell.request.calibrates and (cell.request.dataset or not on_hub):
            yield "dataset", *self._datasets(cell, _mapping(manifest, "calibration"))
        if not on_hub:
            source = self.models.source(cell)
            yield "model", *self._compared(_mapping(manifest, "source"), (*source.files, *source.extras))

    def _datasets(self, cell: Cell, found: Mapping[str, Any]) -> tuple[Any, Any]:
        """What was calibrated with and what is to be; of data that the model writes the text is not known before."""
        wanted = cell.request.dataset
        if isinstance(wanted, Generate):
            return {key: value for key, value in found.items() if key != "sha256"}, wanted.facts()
        return found, calibration.load(wanted, self.models.source(cell).vocabulary).facts()

    def _compared(self, entry: Mapping[str, Any], wanted: Sequence[Path]) -> tuple[Any, Any]:
        """The files of an entry of the manifest and those that are there, with hashes where the sizes are the same."""
        found = entry.get("files")
        sizes = [{"path": file.name, "size": _size(file)} for file in wanted]
        listed = found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else []
        if [{key: one.get(key) for key in ("path", "size")} for one in listed] != sizes:
            return listed, None
        return [one.get("sha256") for one in listed], [self._digest(file) for file in wanted]

    def _digest(self, file: Path) -> str:
        if file not in self._digests:
            files.check(file, None, CheckpointError)
            self._digests[file] = bundle.sha256(file, lambda _: self.check())
        return self._digests[file]


def _of_request(manifest: Mapping[str, Any], cell: Cell) -> Compared:
    """What can be told without a look at the cell's files. Of a model on the hub that is its name and its revision:
    where the sweep names a branch, a bundle of an earlier commit is taken for the cell's."""
    request, board = cell.request, cell.request.board
    adapters = request.adapters
    toolkit, found = _mapping(manifest, "toolkit"), _mapping(manifest, "lora")
    yield "name", manifest["name"], cell.name
    yield "dtype", manifest["dtype"], cell.dtype
    yield "target", sorted(manifest["artifacts"]), sorted(request.targets)
    yield "hybrid_rate", _mapping(manifest, "hybrid").get("rate", 0.0), request.hybrid_rate
    yield "LoRA", [(a.get("name"), a.get("scale")) for a in _adapters(manifest)], [(a.name, a.scale) for a in adapters]
    yield "lora_mode", found.get("mode"), (request.lora_mode or lora.MODES[0]) if adapters else None
    if request.rotation:  # of one that was rotated before, the model's own files say so
        how = {key: value for key, value in request.rotation.facts().items() if key != "basis"}
        yield "rotation", {key: _mapping(manifest, "rotation").get(key) for key in how}, how
    if request.calibrates:
        texts = request.dataset.name if request.dataset else calibration.BUILT_IN
        yield "dataset", _mapping(manifest, "calibration").get("name"), texts
    for option in _OPTIONS:
        yield option, toolkit.get(option), getattr(board, option) if board else None
    for option in _FILES:
        file = getattr(board, option, None)
        yield option, _mapping(toolkit, option).get("name"), file.name if file else None
    if request.toolkit:
        made = releases.of(str(toolkit.get("version", ""))).name
        yield "toolkit", made, releases.of(request.toolkit).name
    dataset = (board.dataset.name if board.dataset else calibration.BUILT_IN) if board else None
    yield "dataset", _mapping(toolkit, "dataset").get("name"), dataset
    if wanted := _on_hub(cell.model):
        origin = _mapping(_mapping(manifest, "source"), "hub")
        yield "model", origin.get("repository"), wanted.repository
        yield "revision", origin.get("revision"), wanted.revision or hub_client.BRANCH
        if wanted.file:
            yield "model", origin.get("file"), wanted.file


def _on_hub(model: str) -> hub.HubName | None:
    return None if os.path.lexists(model) else hub.parse(model)


def _adapters(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As bundle.read has checked them."""
    return list(_mapping(manifest, "lora").get("adapters", ()))


def _mapping(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = entry.get(key)
    return value if isinstance(value, dict) else {}


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None
