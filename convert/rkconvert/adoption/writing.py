"""An adopted ``.rkllm`` with its tokenizer, template, manifest and card: a bundle, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rk3588
from rk3588 import bundle, files
from rk3588.errors import CheckpointError, TargetError
from rkconvert.artifact.artifact_file import write_error
from rkconvert.artifact.header import write_tokenizer
from rkconvert.build import Progress
from rkconvert.bundle_texts import described_shape, tokenizer_facts, tokenizer_files
from rkconvert.cards.card import Variant, base_of, model_card
from rkconvert.signals import deferred_interrupts
from rkconvert.sources.base import CARD
from rkconvert.toolkit.options import PLATFORM

from . import claims as said
from .adopt import Adoption


def write(adoption: Adoption, progress: Progress) -> Path:
    """The bundle's folder. CheckpointError, TargetError: what could not be read, or written."""
    found = adoption.rkllm
    # Ctrl-C ends a download at once, also one that stands still; what has come is kept.
    here = found.fetch(_counter("download", found.ends.size, progress, lambda: None))
    with deferred_interrupts() as check, bundle.new_folder(adoption.folder, replace=adoption.overwrite) as folder:
        _check_space(adoption, folder)
        try:
            found.put(here, folder / bundle.NPU_MODEL, _counter("copy", found.ends.size, progress, check))
            _write_texts(adoption, folder)
            step = _counter("hash", bundle.size(folder), progress, check)
            bundle.write_manifest(folder, make_manifest(adoption), step)
        except OSError as error:
            raise write_error(error, Path(error.filename or folder / bundle.NPU_MODEL)) from error
        check()
    return adoption.folder


def _check_space(adoption: Adoption, folder: Path) -> None:
    found, free = adoption.rkllm, shutil.disk_usage(folder).free
    if found.repository is None and found.ends.size > free:  # what is in the hub's cache is linked
        raise TargetError(
            f"no space left in {adoption.folder.parent}: {found.ends.size / 1e6:.1f} MB are needed and "
            f"{free / 1e6:.1f} MB free; free some or choose another -o"
        )


def _counter(what: str, total: int, progress: Progress, check: Callable[[], None]) -> Callable[[int], None]:
    done = 0

    def step(size: int) -> None:
        nonlocal done
        check()
        done += size
        progress(what, min(done, total), total)

    return step


def _write_texts(adoption: Adoption, folder: Path) -> None:
    base, vocabulary = adoption.base, adoption.base.vocabulary
    for file in (*base.copies, *base.license_files):
        files.copy(file, folder / file.name, files.TOKENIZER, file.parent, CheckpointError)
    for name, text in tokenizer_files(base).items():
        (folder / name).write_text(text, encoding="utf-8")
    if adoption.template is not None:
        (folder / bundle.TEMPLATE).write_text(adoption.template, encoding="utf-8")
    if vocabulary is not None:
        write_tokenizer(folder / bundle.VOCABULARY, adoption.name, vocabulary)
    manifest = {**make_manifest(adoption), "files": [{"path": file.name} for file in base.license_files]}
    sizes = {PLATFORM: adoption.rkllm.ends.size}
    variant = Variant(adoption.folder.name, manifest, sizes, base.shape, adoption.template is not None)
    (folder / CARD).write_text(model_card([variant], base_of(base)), encoding="utf-8")


def make_manifest(adoption: Adoption) -> dict[str, Any]:
    """``rkbundle.json`` without its list of files. ``source`` is what the file is said to be made of, by whoever
    adopted it; who made it, and how, nobody here knows."""
    base, origin = adoption.base, adoption.rkllm.origin
    rate = adoption.claims.get(said.RATE)
    return {
        "name": adoption.name,
        "dtype": adoption.dtype,
        "target_platform": PLATFORM,
        "model": described_shape(base, base.shape.total_params) if base.shape else {"architecture": base.architecture},
        "source": {
            "name": base.name,
            "kind": base.kind,
            **({"hub": asdict(base.origin)} if base.origin else {}),
            "types": [],
            "files": [
                {"path": file.name, "size": file.stat().st_size, "sha256": bundle.sha256(file)} for file in base.extras
            ],
        },
        "tokenizer": tokenizer_facts(base),
        **({"sampling": dict(base.sampling)} if base.sampling else {}),
        "artifacts": {PLATFORM: bundle.NPU_MODEL},
        **({"hybrid": {"rate": rate.value}} if rate and rate.value else {}),
        "adopted": {
            "file": adoption.rkllm.name,
            **({"hub": asdict(origin)} if origin else {}),
            "claims": said.facts(adoption.claims),
            **({"unsaid": unsaid} if (unsaid := _unsaid(adoption)) else {}),
        },
        "converter": {"rkconvert": rk3588.__version__},
    }


def _unsaid(adoption: Adoption) -> list[str]:
    """What nothing says: not even the names."""
    return [key for key in (said.PLATFORM, said.TOOLKIT, said.LEVEL, said.RATE) if key not in adoption.claims]
