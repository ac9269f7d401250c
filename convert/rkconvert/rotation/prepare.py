"""The step of a conversion between its plan and its data: the matrices are made, and the source is changed."""

from __future__ import annotations

from dataclasses import replace

from rkconvert.plan import Plan
from rkconvert.sources.base import Source

from .hadamard import random_hadamard
from .options import Rotate
from .rotate import Rotation, rotated, rotated_lora


def prepared(plan: Plan) -> Plan:
    """``plan`` with its source and the adapters that are kept rotated, where it asks for that and it is not done yet.

    Adapters that are merged stay as they are: they are added to the weights before these are turned.
    """
    if plan.rotate is None or plan.source.rotation:
        return plan
    source = rotated(plan.sim_source, rotation_of(plan.rotate, plan.sim_source), plan.rotate)
    loras = plan.loras
    if plan.kept_loras:
        loras = tuple(rotated_lora(lora, source.changes) for lora in loras)
    return replace(plan, source=source, loras=loras)


def rotation_of(rotate: Rotate, source: Source) -> Rotation:
    """The matrices of that kind for a model."""
    config = source.config
    heads = [random_hadamard(config.head_dim, (rotate.seed, 2, i)) for i in range(config.layers)]
    return Rotation(random_hadamard(config.hidden, (rotate.seed, 1)), tuple(heads))
