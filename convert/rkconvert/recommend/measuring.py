"""Each variant made in a temporary folder, measured beside the model itself, and removed again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rk3588 import bundle, quant
from rk3588.errors import TargetError, UsageError
from rk3588.hostlib import SimModel
from rkconvert import accuracy, memory
from rkconvert.accuracy import Accuracy
from rkconvert.artifact.layout import make_artifact
from rkconvert.build import convert
from rkconvert.plan import available_cores
from rkconvert.request import Request
from rkconvert.sources.base import Source

from .variants import Variant

Step = Callable[[int, int], None]
_LOGITS = 4 + 3 * 8  # bytes of each, of one window: as computed, and as float64 while they are compared
_ROOM = 1.1  # of what files take: headers, and what a file system wants
# Weights a second on one core, as measured: what is converted, and what reads a token.
_CONVERTED, _READ_FLOAT, _READ_INT8 = 80e6, 12e9, 80e9


@dataclass(frozen=True)
class Costs:
    """Of measuring variants beside ``reference`` (fp32 or fp16)."""

    reference: str
    memory: int  # bytes, at the most
    disk: int  # bytes at once
    seconds: float  # about


def costs(source: Source, variants: Sequence[Variant], tokens: int) -> Costs | None:
    """None where this machine has too little memory, with an fp16 reference too."""
    window = min(accuracy.WINDOW, tokens) * source.config.vocab_size * _LOGITS
    largest = max(_bytes(source, variant.dtype) for variant in variants)
    free = memory.machine().most
    for reference in ("fp32", "fp16"):
        own = _bytes(source, reference)
        if own + largest + window <= free:
            break
    else:
        return None
    weights, cores = source.parameters, available_cores()
    read = tokens * len(variants) * weights * (1 / _READ_FLOAT + 1 / _READ_INT8) / cores
    made = (len(variants) + 1) * weights / _CONVERTED / cores
    return Costs(reference, own + largest + window, round(_ROOM * (own + largest)), read + made)


def _bytes(source: Source, dtype: str) -> int:
    return make_artifact(source.config, quant.scheme(dtype)).data_bytes


def check_space(needed: int) -> None:
    """TargetError where the folder for temporary files has less."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TargetError(
            f"no space left in {folder}: {needed / 1e6:.0f} MB are needed for a while and {free / 1e6:.0f} MB free; "
            "free some, or set TMPDIR to another folder"
        )


@dataclass
class _Progress:
    """Of all variants together, in thousandths of each; every one is converted and read. It never goes back, though a
    conversion counts anew for each of its stages."""

    step: Step
    total: int
    done: int = 0
    told: int = 0

    def part(self, begin: float, end: float) -> Callable[[str, int, int], None]:
        def update(_what: str, done: int, total: int) -> None:
            share = begin + (end - begin) * done / max(total, 1)
            self.told = max(self.told, round(1000 * (self.done + share)))
            self.step(self.told, 1000 * self.total)

        return update


def measure(
    source: Source,
    variants: Sequence[Variant],
    text: tuple[str, str],
    tokens: int,
    reference: str,
    step: Step,
) -> list[Accuracy]:
    """In the order of ``variants``. ``text`` is what is read, and what it is called; ``step`` may raise, to stop."""
    progress = _Progress(step, len(variants) + 1)
    with tempfile.TemporaryDirectory(prefix="rkconvert-recommend-") as scratch:
        truth = _made(source, Request(dtypes=(reference,)), Path(scratch), progress.part(0, 1))
        with SimModel(truth) as model:
            ids = model.tokenise(text[0])[:tokens]
            parts = accuracy.windows(ids, min(accuracy.WINDOW, model.info.context_length))
            if not parts:
                raise UsageError(f"{text[1]} is too short: there is no token to predict")
            found = []
            for variant in variants:
                progress.done += 1
                found.append(_one(source, variant, model, parts, text[1], Path(scratch), progress))
        return found


def _one(
    source: Source,
    variant: Variant,
    truth: SimModel,
    parts: list[list[int]],
    name: str,
    scratch: Path,
    progress: _Progress,
) -> Accuracy:
    made = _made(source, variant.request, scratch, progress.part(0, 0.4))
    reading = progress.part(0.4, 1)
    try:
        with SimModel(made) as model:
            return accuracy.compare(truth, model, parts, name, lambda done, total: reading("", done, total))
    finally:
        shutil.rmtree(made.parent)


def _made(source: Source, request: Request, scratch: Path, progress: Callable[[str, int, int], None]) -> Path:
    """The artifact in a bundle of its own."""
    plan = request.plan(source, "model", scratch)
    (folder,) = convert(replace(plan, remarks=()), progress)
    return folder / bundle.SIM_MODEL
