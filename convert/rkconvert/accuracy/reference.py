"""Which bundle others are compared with: the same model in fp32, or in fp16 where that is all that fits memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rk3588 import bundle, quant
from rk3588.bundle import Bundle
from rk3588.errors import BundleError, UsageError
from rkconvert import memory

REFERENCE, SMALLER = "fp32", "fp16"
_ROOM = 512 << 20  # beside the reference's weights, for logits and all else


def common_reference(found: Sequence[Bundle], tell: Callable[[str], None] = lambda _: None) -> Bundle:
    """That of all of these; UsageError where they are no bundles of one model."""
    sources = [_weight_sources(one) for one in found]
    for one, files in zip(found, sources):
        if files != sources[0]:
            raise UsageError(
                f"{found[0].path} and {one.path} are made of different models ({found[0].name}, {one.name}): measure "
                "each model's bundles by themselves, or name what both are to be compared with by --reference"
            )
    return reference_for(found[0], found, tell)


def reference_for(
    found: Bundle, others: Sequence[Bundle], tell: Callable[[str], None] = lambda _: None
) -> Bundle:
    """The bundle of the same model to compare ``found`` with, among ``others`` or beside it; BundleError says how to
    get one."""
    exact, smaller = (_same_model(found, others, dtype) for dtype in (REFERENCE, SMALLER))
    size = _bytes(exact) if exact else 2 * _bytes(smaller) if smaller else 0
    most = memory.machine().most
    fits = size + _ROOM <= most
    if exact and (fits or not smaller):
        return exact
    if smaller and not fits:
        tell(
            f"the reference is {SMALLER}, not {REFERENCE}: that takes {size / 1e9:.1f} GB, of which {most / 1e9:.1f} "
            "GB are free"
        )
        return smaller
    raise BundleError(
        f"{found.path} has no {REFERENCE} bundle of the same model beside it to compare with: make one with "
        f"rkconvert MODEL --name {found.name} -o {found.path.parent} --dtype {REFERENCE}"
    )


def _same_model(found: Bundle, others: Sequence[Bundle], dtype: str) -> Bundle | None:
    beside = found.path.absolute().parent / f"{found.name}-rk3588-{dtype}"
    candidates = [*others, *([bundle.read(beside)] if (beside / bundle.MANIFEST).is_file() else [])]
    files = _weight_sources(found)
    return next((o for o in candidates if o.dtype == dtype and o.sim_model and _weight_sources(o) == files), None)


def _weight_sources(found: Bundle) -> tuple[Any, ...]:
    """What the weights are made of: the source's files, and adapters merged into them."""
    lora = found.manifest.get("lora", {})
    merged = lora.get("adapters", []) if lora.get("mode") == "merge" else []
    return sorted(f["sha256"] for f in found.manifest["source"]["files"]), [(a["name"], a["scale"]) for a in merged]


def _bytes(found: Bundle) -> int:
    return sim_model(found).stat().st_size


def sim_model(found: Bundle) -> Path:
    """The file that is measured; BundleError where there is none."""
    if found.sim_model is None:
        raise BundleError(f"{found.path} has no {bundle.SIM_MODEL} to measure: convert with --target sim as well")
    return found.sim_model


def act_scales(found: Bundle, asked: Sequence[str]) -> list[str | None]:
    """Those of ``asked`` that make a difference to this bundle; None: as RKSIM_ACT_SCALE says."""
    scheme = quant.scheme(found.dtype)
    if not asked or not scheme.quantised:
        return [None]
    grouped = scheme.group_size or "hybrid" in found.manifest
    return [mode for mode in dict.fromkeys(asked) if mode != "group" or grouped] or ["token"]
