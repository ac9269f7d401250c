"""Which layers of a hybrid get groups in the simulated runtime's artifact: those that gain most by it.

The error of a layer is the squared difference that quantising makes, over the squared weights. Layers that read the
same input (Q, K and V; gate and up) are one, since the runtime quantises that input once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rk3588 import quant
from rk3588.quant import Scheme
from rkconvert.architectures.model import EMBEDDING, OUTPUT
from rkconvert.plan import Plan

from .block import Block
from .blocks import block_jobs
from .layout import make_artifact
from .reading import opened

_SAME_INPUT = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}
Sums = npt.NDArray[np.float64]  # per scheme the squared error, and last the squared weights


def choose_grouped_layers(plan: Plan, step: Callable[[int], None]) -> Plan:
    """``plan`` with the layers chosen that get groups. ``step`` is told the bytes of each piece read."""
    if not plan.hybrid_rate or not plan.for_sim:
        return plan
    schemes = {s for artifact in plan.artifacts for s in quant.mixed(artifact.scheme)}
    errors = _layer_errors(plan, sorted(schemes, key=lambda s: s.group_size), step)
    artifacts = []
    for artifact in plan.artifacts:
        plain, grouped = quant.mixed(artifact.scheme)
        gains = {unit: error[plain] - error[grouped] for unit, error in errors.items()}
        artifacts.append(make_artifact(plan.sim_source.config, artifact.scheme, _most_gaining(gains, plan.hybrid_rate)))
    return replace(plan, artifacts=tuple(artifacts))


def _most_gaining(gains: dict[tuple[str, ...], float], rate: float) -> frozenset[str]:
    """The names in the units that gain most: ``rate`` of the units, one at the least."""
    count = max(round(rate * len(gains)), 1)
    best = sorted(gains, key=lambda unit: (-gains[unit], unit))[:count]
    return frozenset(name for unit in best for name in unit)


def _layers_of_one_input(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Canonical names of linear layers, those that share an input together."""
    found: dict[str, list[str]] = {}
    for name in names:
        kind = name.split(".")[-2]
        found.setdefault(name.replace(kind, _SAME_INPUT.get(kind, kind)), []).append(name)
    return [tuple(unit) for unit in found.values()]


def _layer_errors(
    plan: Plan, schemes: list[Scheme], step: Callable[[int], None]
) -> dict[tuple[str, ...], dict[Scheme, float]]:
    """The relative squared error of every unit under every scheme."""
    source = plan.sim_source
    layers = {name: name for name, shape in source.config.tensors().items() if len(shape) == 2 and name != EMBEDDING}
    if source.config.tied:
        layers[OUTPUT] = EMBEDDING
    sums = {}
    with ThreadPoolExecutor(plan.threads) as pool:
        for name, origin in layers.items():
            total, tensor = np.zeros(len(schemes) + 1), source.tensors[origin]
            with opened(tensor.file) as file:
                jobs = block_jobs(source, origin, file, plan.merged_loras)
                for part in pool.map(lambda job: _measure(job.make(), schemes), jobs):
                    total += part
            step(tensor.nbytes)
            sums[name] = total
    found = {}
    for unit in _layers_of_one_input(layers):
        *squared, weights = np.sum([sums[name] for name in unit], axis=0)
        found[unit] = {s: float(e / weights) if weights else 0.0 for s, e in zip(schemes, squared, strict=True)}
    return found


def _measure(block: Block, schemes: list[Scheme]) -> Sums:
    weights = block.as_float32()
    squared = [np.square(weights - quant.dequantise(*block.quantised(s), s), dtype=np.float64).sum() for s in schemes]
    return np.array([*squared, np.square(weights, dtype=np.float64).sum()])
