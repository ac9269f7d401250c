"""Which runtime runs which toolkit's models, under which driver, and what each release is known to get wrong.

Data with its sources: what owners and Rockchip's maintainers have written, for RKLLM has no such table. Nothing here
was tried by us. ``#N`` is an issue of airockchip/rknn-llm.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from . import rkllm_file
from .bundle import Bundle
from .families import version

RELEASES = (
    "1.0.0", "1.0.1", "1.1.0", "1.1.1", "1.1.2", "1.1.3", "1.1.4", "1.2.0", "1.2.1", "1.2.2", "1.2.3", "1.3.0", "1.3.1",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A runtime, and the toolkits' releases whose models it was seen to load: all from ``oldest`` to ``newest``."""

    runtime: str
    oldest: str
    newest: str
    source: str


SEEN = (
    Seen("1.1", "1.1.0", "1.1.4", "one family, whose header did not change"),
    Seen("1.2.1", "1.1.1", "1.2.1", "a maintainer in #337; #509"),
    Seen("1.2.3", "1.1.1", "1.2.3", "jaylfc/taOS#1732"),
    Seen("1.3.0", "1.2.1", "1.3.0", "owners' logs"),
    Seen("1.3.0", "1.1.1", "1.1.1", "#509"),
    Seen("1.3.1", "1.3.0", "1.3.1", "an owner's Orange Pi 5 Plus"),
)


@dataclass(frozen=True)
class Pairing:
    """``level``: as the board's findings have it: ok, info (nobody has said), or refuse."""

    level: str
    text: str


def pairing(runtime: str, toolkit: str) -> Pairing:
    """A model of ``toolkit`` under ``runtime``; where one is not known well enough, nothing is judged."""
    ours, its = _exactly(runtime), version(toolkit)
    what = f"a model of rkllm-toolkit {toolkit} under librkllmrt {runtime}"
    if len(its) < 2 or len(ours) < (2 if ours[:2] <= (1, 1) else 3):
        return Pairing("info", f"{what}: whether that works is not known")
    if its < (1, 1) <= ours:
        return Pairing("refuse", f"{what}: models of before 1.1 run under librkllmrt 1.0 only")
    if ours[:2] < its[:2] or (len(ours) > 2 and ours[:2] == its[:2] != (1, 1) and ours < its):
        return Pairing("refuse", f"{what}: a runtime loads no model of a newer toolkit")
    for seen in SEEN:
        same = ours[: len(version(seen.runtime))] == version(seen.runtime)
        if same and version(seen.oldest) <= its <= version(seen.newest):
            return Pairing("ok", f"{what}: seen to load ({seen.source})")
    return Pairing("info", f"{what}: likely loads, but nobody has told of it")


def runtimes_for(toolkit: str) -> list[str]:
    """The releases to advise for a model of ``toolkit``, oldest first: none that is known to refuse it, nor one that
    is known to fail with any model."""
    failing = {d.first for d in DEFECTS if d.level == "warn" and not d.models and not d.socs and d.first == d.last}
    return [r for r in RELEASES if r not in failing and pairing(r, toolkit).level != "refuse"]


def runtimes_told(toolkit: str) -> str:
    """The same in words: ``1.1.0 to 1.2.3 or 1.3.1``; "" where there are none."""
    able, parts = runtimes_for(toolkit), []
    for first in able:
        at = RELEASES.index(first)
        if at and RELEASES[at - 1] in able:
            continue
        run = [release for release in RELEASES[at:] if set(RELEASES[at : RELEASES.index(release) + 1]) <= set(able)]
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else run
    return " or ".join(parts)


@dataclass(frozen=True)
class Defect:
    """Of the runtimes from ``first`` to ``last``. It counts where ``models`` and ``socs``, patterns, are found in the
    model's name and the chip's ("": any). ``level``: warn where a daemon of ours meets it."""

    first: str
    last: str
    text: str
    remedy: str
    source: str
    level: str = "info"
    models: str = ""
    socs: str = ""


DEFECTS = (
    Defect("1.2.0", "1.2.1", "rkllm_run_async hangs", "programs that call it want 1.2.2 or newer", "#320"),
    Defect(
        "1.0.0", "1.2.1", "several models in one process garble each other",
        "one process for each model, as rkchatd does, or 1.2.2 or newer", "#367",
    ),
    Defect(
        "1.2.3", "1.2.3", "it turns DeepSeek-R1-Distill into [PAD…]", "take 1.2.2 for this model", "#424, #467",
        level="warn", models=r"deepseek-?r1",
    ),
    Defect(
        "1.3.0", "1.3.0", "it has SVE instructions and ends in SIGILL on an RK3588", "take 1.3.1, or 1.2.3", "#518",
        level="warn",
    ),
    Defect(
        "1.3.0", "1.3.0", "an init that finds too little NPU memory crashes the next one", "take 1.3.1", "#522",
    ),
    Defect(
        "1.3.0", "1.3.0", "answers end early after </think>", "take 1.2.3", "GatekeeperZA/RKLLM-API-Server",
        level="warn", models=r"qwen-?3|smollm3|deepseek-?r1|think",
    ),
    Defect(
        "1.3.1", "1.3.1", "SIGBUS at load on one RK3588S with driver 0.9.8, none on four other boards",
        "where it happens: take 1.2.3", "one owner's report", socs=r"RK3588S",
    ),
)  # fmt: skip

# The least driver that a runtime's manual names; the libraries themselves warn below 0.9.7 and go on.
DRIVERS = (("1.3.1", (0, 9, 8), "the manual of 1.3.1, as reported"),)


def defects(runtime: str, model: str = "", soc: str = "") -> list[Defect]:
    """What is known of a runtime that may hit this model on this chip; nothing of one not known to the patch."""
    found = _exactly(runtime)
    if len(found) < 3:
        return []
    return [
        defect
        for defect in DEFECTS
        if version(defect.first) <= found <= version(defect.last)
        and re.search(defect.models, model, re.IGNORECASE)
        and re.search(defect.socs, soc)
    ]


def driver_for(runtime: str) -> tuple[tuple[int, ...], str]:
    """The least rknpu driver that a runtime wants, and who says so; () where nothing more than for any is known."""
    for release, driver, source in DRIVERS:
        if len(_exactly(runtime)) == 3 and _exactly(runtime) >= version(release):
            return driver, source
    return (), ""


class Toolkit(NamedTuple):
    """A release of rkllm-toolkit; ``claimed``: only a name says so, and neither the file nor whoever ran it."""

    release: str
    claimed: bool


def toolkit_of(found: Bundle) -> Optional[Toolkit]:
    """What wrote a bundle's ``model.rkllm``: as the file says, else the manifest; None where nothing does."""
    path = found.npu_model
    if path is None:
        return None
    with contextlib.suppress(OSError):  # whoever opens it next says why
        if told := rkllm_file.toolkit_version(rkllm_file.ends(path).tail):
            return Toolkit(told, claimed=False)
    return release_in(found.manifest)


def release_in(manifest: Mapping[str, Any]) -> Optional[Toolkit]:
    """The same as far as the manifest says it."""
    if said := _release(manifest.get("toolkit"), "version"):
        return Toolkit(said, claimed=False)
    said = _release(manifest.get("adopted", {}).get("claims", {}).get("toolkit"), "value")
    return Toolkit(said, claimed=True) if said else None


def _release(facts: Any, key: str) -> str:
    """A version out of a manifest, which may hold anything."""
    value = facts.get(key) if isinstance(facts, dict) else None
    return value if isinstance(value, str) and len(value) <= 40 and version(value) else ""


def _exactly(runtime: str) -> tuple[int, ...]:
    """A runtime's release; () for "1.2 or newer", which is all that a library's functions may tell."""
    return version(runtime) if re.fullmatch(r"\d{1,3}(\.\d{1,3}){1,2}(b\d{1,3})?", runtime) else ()
