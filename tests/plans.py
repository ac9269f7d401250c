"""Plans without a command line, for tests that have opened a source themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rk3588.quant import Scheme
from rkconvert.adapters.lora import Lora
from rkconvert.plan import Plan
from rkconvert.request import Request
from rkconvert.sources.base import Source


def make_plan(
    source: Source,
    name: str,
    out: Path,
    schemes: Sequence[Scheme],
    *,
    threads: int = 0,
    loras: Sequence[Lora] = (),
    lora_mode: str = "adapter",
    hybrid_rate: float = 0.0,
    overwrite: bool = False,
    rotate: str | None = None,
    smooth: str | None = None,
) -> Plan:
    """What ``rkconvert build`` plans for these options, with adapters that are read already."""
    dtypes = tuple(scheme.name for scheme in schemes)
    request = Request(dtypes=dtypes, hybrid_rate=hybrid_rate, overwrite=overwrite, rotate=rotate, smooth=smooth)
    plan = request.plan(source, name, out)
    plan = replace(plan, loras=tuple(loras), lora_mode=lora_mode)
    return replace(plan, threads=threads) if threads else plan
