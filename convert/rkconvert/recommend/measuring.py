"""Variants made in a temporary folder, as many at once as there is room for, measured beside the model, and removed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rk3588 import bundle, quant
from rk3588.bundle import Bundle
from rk3588.errors import TargetError
from rkconvert import accuracy, memory
from rkconvert.accuracy import Accuracy, Text
from rkconvert.artifact.layout import make_artifact
from rkconvert.build import convert
from rkconvert.plan import available_cores
from rkconvert.request import Request
from rkconvert.rotation.texts import MOST as CALIBRATION_TOKENS
from rkconvert.sources.base import Source

from .variants import Variant

Step = Callable[[int, int], None]
_LOGITS = 2 * (4 + 8)  # bytes of each, of one window: of two models, as computed and as compared
_ROOM = 1.1  # of what files take: headers, and what a file system wants
_SHARE = 0.5  # of what memory is left, for the variants that are read at once
# Weights a second on one core, as measured: what is converted, and what reads a token.
_CONVERTED, _READ_FLOAT, _READ_INT8 = 40e6, 12e9, 80e9


@dataclass(frozen=True)
class Costs:
    """Of measuring. ``batches``: the variants that are read at once, beside ``reference`` (fp32 or fp16)."""

    reference: str
    batches: tuple[tuple[Variant, ...], ...]
    memory: int  # bytes, at the most
    disk: int  # bytes at once
    seconds: float  # about

    @property
    def variants(self) -> int:
        return sum(map(len, self.batches))


def costs(source: Source, variants: Sequence[Variant], tokens: int) -> Costs | None:
    """None where this machine has too little memory, with an fp16 reference too; TargetError for too little disk."""
    window = min(accuracy.WINDOW, tokens) * source.config.vocab_size * _LOGITS
    sizes = [_bytes(source, variant.dtype) for variant in variants]
    free, disk = memory.machine().most, shutil.disk_usage(tempfile.gettempdir()).free
    for reference in ("fp32", "fp16"):
        own = _bytes(source, reference)
        if own + max(sizes) + window <= free:
            break
    else:
        return None
    _check_space(round(_ROOM * (own + max(sizes))), disk)
    room = min(_SHARE * (free - own - window), disk / _ROOM - own)
    parts = batches(variants, sizes, room)
    most = max(sum(_bytes(source, variant.dtype) for variant in batch) for batch in parts)
    weights, cores = source.parameters, available_cores()
    read = tokens * weights * (len(parts) / _READ_FLOAT + len(variants) / _READ_INT8) / cores
    made = (len(variants) + 1) * weights / _CONVERTED / cores
    made += sum(variant.smooth for variant in variants) * CALIBRATION_TOKENS * weights / _READ_FLOAT / cores
    return Costs(reference, parts, own + most + window, round(_ROOM * (own + most)), read + made)


def batches(variants: Sequence[Variant], sizes: Sequence[int], room: float) -> tuple[tuple[Variant, ...], ...]:
    """In order; one at the least in each."""
    found: list[list[Variant]] = []
    used = 0.0
    for variant, size in zip(variants, sizes, strict=True):
        if not found or used + size > room:
            found.append([])
            used = 0.0
        found[-1].append(variant)
        used += size
    return tuple(map(tuple, found))


def _bytes(source: Source, dtype: str) -> int:
    """An artifact's, rotated or not; of a hybrid the largest that it can become is that of its groups."""
    config = replace(source.config, tied=False)
    return make_artifact(config, quant.scheme("w8a8_g128" if dtype == "w8a8" else dtype)).data_bytes


def _check_space(needed: int, free: int) -> None:
    if needed > free:
        raise TargetError(
            f"no space left in {tempfile.gettempdir()}: {needed / 1e6:.0f} MB are needed for a while and "
            f"{free / 1e6:.0f} MB free; free some, or set TMPDIR to another folder"
        )


@dataclass
class _Progress:
    """In thousandths of a bundle's conversion. It never goes back, though a conversion counts anew for each of its
    stages."""

    step: Step
    total: int
    done: int = 0
    told: int = 0

    def next(self, weight: int = 1) -> Callable[[str, int, int], None]:
        """For what comes next, which is worth ``weight`` conversions."""
        before = self.done
        self.done += weight

        def update(_what: str, done: int, total: int) -> None:
            self.told = max(self.told, round(1000 * (before + weight * done / max(total, 1))))
            self.step(self.told, 1000 * self.total)

        return update


def measure(
    source: Source, asked: Costs, texts: Sequence[Text], name: str, tokens: int, step: Step
) -> dict[Variant, Accuracy]:
    """``texts``, together called ``name``, read by each variant and by the reference. ``step`` may raise, to stop."""
    progress = _Progress(step, 1 + 3 * asked.variants)
    found: dict[Variant, Accuracy] = {}
    with tempfile.TemporaryDirectory(prefix="rkconvert-recommend-") as scratch:
        (truth,) = _made(source, Request(dtypes=(asked.reference,)), Path(scratch), progress.next())
        for batch in asked.batches:
            made = _all_of(source, batch, Path(scratch), progress)
            reading = progress.next(2 * len(batch))
            read = accuracy.measure(made, truth, texts, tokens, name=name, step=reading)
            found |= zip(batch, read, strict=True)
            for each in made:
                shutil.rmtree(each.path)
    return found


def _all_of(source: Source, batch: Sequence[Variant], scratch: Path, progress: _Progress) -> list[Bundle]:
    """In the order of ``batch``. What differs in its dtype only is made in one pass over the model."""
    made: dict[Variant, Bundle] = {}
    for variant in batch:
        if variant not in made:
            alike = [each for each in batch if replace(each, dtype=variant.dtype) == variant]
            request = replace(variant.request, dtypes=tuple(each.dtype for each in alike))
            made |= zip(alike, _made(source, request, scratch, progress.next(len(alike))), strict=True)
    return [made[variant] for variant in batch]


def _made(source: Source, request: Request, scratch: Path, progress: Callable[[str, int, int], None]) -> list[Bundle]:
    return [bundle.read(folder) for folder in convert(request.plan(source, "model", scratch), progress)]
