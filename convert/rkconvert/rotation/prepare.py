"""The step of a conversion between its plan and its data: matrices and factors are made, the source is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rkconvert.calibration import Generate
from rkconvert.plan import Plan
from rkconvert.sources.base import Source

from . import forward, learn, texts
from .hadamard import random_hadamard
from .options import LEARNED, Rotate
from .rotate import Rotation, rotated, rotated_lora
from .smooth import smoothed

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is, and how much there is


def prepared(plan: Plan, progress: Progress = lambda *_: None) -> Plan:
    """``plan`` with its source and the adapters that are kept changed, where it asks for that and it is not done yet.

    Adapters that are merged stay as they are: they are added to the weights before these are changed.
    """
    rotate = plan.rotate if plan.rotate and not plan.source.rotation else None
    smooth = plan.smooth if plan.smooth and not plan.sim_source.smoothed else None
    if rotate is None and smooth is None:
        return plan
    source = plan.sim_source
    assert not isinstance(plan.calibration, Generate)  # the model has written it
    windows = texts.windows(source, plan.calibration) if plan.calibration else []
    if rotate:
        source = rotated(source, _matrices(plan, rotate, windows, progress), rotate)
    if smooth:
        source = smoothed(source, smooth, windows, plan.merged_loras, _reading(source, progress))
    loras = plan.loras
    if plan.kept_loras:
        loras = tuple(rotated_lora(lora, source.changes) for lora in loras)
    return replace(plan, source=source, loras=loras)


def _matrices(plan: Plan, rotate: Rotate, windows: forward.Windows, progress: Progress) -> Rotation:
    source = plan.sim_source
    found = rotation_of(rotate, source)
    if rotate.kind != LEARNED:
        return found
    read = _reading(source, progress)
    step = _counted("Learning R1", learn.STEPS, progress)
    return learn.learned(source, found, rotate, windows, plan.merged_loras, read, step)


def _reading(source: Source, progress: Progress) -> Callable[[int], None]:
    return _counted("calibrate", source.nbytes, progress)


def _counted(what: str, total: int, progress: Progress) -> Callable[[int], None]:
    """To be told the size of each piece that is done."""
    done = 0

    def step(size: int) -> None:
        nonlocal done
        done += size
        progress(what, min(done, total), total)

    return step


def rotation_of(rotate: Rotate, source: Source) -> Rotation:
    """The matrices that need no more than the model's sizes: of a kind that is learned, those it begins with."""
    config = source.config
    heads = [random_hadamard(config.head_dim, (rotate.seed, 2, i)) for i in range(config.layers)]
    return Rotation(random_hadamard(config.hidden, (rotate.seed, 1)), tuple(heads))
