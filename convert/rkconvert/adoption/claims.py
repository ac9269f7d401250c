"""What the names of a ``.rkllm``, of its repository and of its revision claim, as those who publish such files write
them: ``Qwen2.5-1.5B-Instruct-rk3588-w8a8-opt-1-hybrid-ratio-0.0.rkllm`` in ``…-RK3588-1.1.4``,
``Phi-4-mini_w8a8_g128_rk3588.rkllm``, ``Qwen3-4B-w8a8-rk3588.rkllm`` in ``…-RKLLM-v1.2.3``, ``…_W8A8_RK3588.rkllm``.

None of it is certain: hybrid ratios are known to stand in names of files that were built without one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from rk3588.compatibility import RELEASES
from rk3588.rkllm_file import SUFFIX

PLATFORM, DTYPE, RATE, LEVEL, TOOLKIT, CONTEXT = (
    "platform", "dtype", "hybrid_rate", "optimization_level", "toolkit", "max_context",
)  # fmt: skip
_BEGIN, _END = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
_NUMBER_END = r"(?![A-Za-z0-9]|\.\d)"  # "opt-1.3b" and "hybrid-7B" are models
_PATTERNS = {
    PLATFORM: rf"{_BEGIN}(rk3\d{{3}}|rv11\d\d)[a-z]?{_END}",
    DTYPE: rf"{_BEGIN}(w\d{{1,2}}a\d{{1,2}}(?:[_-]g\d{{1,4}})?){_END}",
    LEVEL: rf"{_BEGIN}opt(?:imi[sz]ation)?[-_]?(?:level[-_]?)?(\d){_NUMBER_END}",
    RATE: rf"{_BEGIN}hybrid[-_]?(?:ratio|rate)?[-_]?(0(?:\.\d{{1,4}})?|1(?:\.0{{1,4}})?){_NUMBER_END}",
    CONTEXT: rf"{_BEGIN}(?:ctx|context)[-_]?(\d{{3,6}}){_END}",
}
# A model's own version has the same form ("dolphin-2.9.2"), so one of these has to stand before it, or it is known.
_VERSION = re.compile(
    r"(?P<said>(?:rkllm|toolkit|runtime|rk3588s?)[-_ .]?)?"
    r"(?<![\d.])v?(?P<release>\d\.\d{1,2}\.\d{1,2}(?:b\d)?)(?!\d|\.\d)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Claim:
    """Something that is said of a file, and by what: its name, that of its repository, the file's text, an option."""

    value: Any
    by: str

    def __str__(self) -> str:
        return f"{self.value} (by {self.by})"


Claims = dict[str, Claim]


def of_name(text: str, by: str) -> Claims:
    """What one name claims."""
    found: Claims = {}
    for key, pattern in _PATTERNS.items():
        if match := re.search(pattern, text, re.IGNORECASE):
            found[key] = Claim(_value(key, match[1]), by)
    versions = [m for m in _VERSION.finditer(text) if m["said"] or m["release"] in RELEASES]
    if versions:
        known = [m for m in versions if m["release"].partition("b")[0] in RELEASES] or versions
        told = next((m for m in reversed(known) if m["said"]), known[-1])
        found[TOOLKIT] = Claim(told["release"], by)
    return found


def _value(key: str, text: str) -> Any:
    if key in (LEVEL, CONTEXT):
        return int(text)
    if key == RATE:
        return float(text)
    return text.lower().replace("-", "_")


def settle(sources: Iterable[Claims]) -> tuple[Claims, list[str]]:
    """The claims of all, the first to make one being believed, and a note for each that another contradicts."""
    found: Claims = {}
    notes = []
    for claims in sources:
        for key, claim in claims.items():
            believed = found.setdefault(key, claim)
            if believed.value != claim.value:
                notes.append(f"{key.replace('_', ' ')}: {believed} is believed, and not {claim}")
    return found, notes


def model_name(file: str) -> str:
    """The model's own name in that of its file: what stands before the first claim; "" where nothing does."""
    name = PurePosixPath(file).name
    name = name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
    starts = [m.start() for pattern in _PATTERNS.values() if (m := re.search(pattern, name, re.IGNORECASE))]
    starts += [m.start() for m in _VERSION.finditer(name) if m["said"] or m["release"] in RELEASES]
    name = name[: min(starts)] if starts else name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-_. ")


def facts(claims: Mapping[str, Claim]) -> dict[str, Any]:
    """For the manifest."""
    return {key: {"value": claim.value, "by": claim.by} for key, claim in claims.items()}
