"""What a request asks of sampling: for its own run where the runtime takes that, else named as without effect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from rk3588.errors import RequestRefused
from rk3588.sampling import EVERY, PENALTIES, Sampling

from .config import Config
from .fields import Fields, refuse

# Names in requests, and the library's for them.
NAMES: Mapping[str, str] = {
    **{name: name for name in Sampling._fields},
    "repetition_penalty": "repeat_penalty",
    **{name: name for name in PENALTIES},
}


class _Range(NamedTuple):
    low: float
    high: float
    open_below: bool = False
    whole: bool = False

    def __str__(self) -> str:
        what = "a whole number" if self.whole else "a number"
        return f"{what} {'above' if self.open_below else 'from'} {self.low:g} to {self.high:g}"


# By the library's names. 0 and -1 of top_k are all tokens; 0 of temperature and of top_p the likeliest one.
_RANGES: Mapping[str, _Range] = {
    "temperature": _Range(0, 100),
    "top_k": _Range(-1, 2**31 - 1, whole=True),
    "top_p": _Range(0, 1),
    "repeat_penalty": _Range(0, 100, open_below=True),
    "frequency_penalty": _Range(-2, 2),
    "presence_penalty": _Range(-2, 2),
}


def described(name: str) -> str:
    """For the document: what a field's value may be."""
    return str(_RANGES[NAMES[name]])


class Wanted(NamedTuple):
    """``run``: for this run, by the library's names; ``ignored``: fields that have no effect."""

    run: Mapping[str, float]
    ignored: tuple[str, ...]


def wanted(fields: Fields, config: Config) -> Wanted:
    """RequestRefused for a value that cannot be, where it would have an effect; in strict mode for one without."""
    seed = ("seed",) if fields.whole("seed") is not None else ()
    if config.per_run_sampling:
        found = Wanted(_of_run(fields), seed)
    else:
        found = Wanted({}, (*_that_differ(fields, config), *seed))
    if found.ignored and config.strict:
        raise RequestRefused(
            f"{', '.join(found.ignored)} cannot be chosen by a request: {why_ignored(config)} (leave the field out, or "
            "run the daemon without --strict)",
            found.ignored[0],
        )
    return found


def why_ignored(config: Config) -> str:
    if config.per_run_sampling:
        return "librkllmrt has no seed"
    return f"librkllmrt {config.runtime_version} fixes sampling when it loads a model"


def _that_differ(fields: Fields, config: Config) -> list[str]:
    """From what the model was loaded with."""
    found = []
    for name, setting in NAMES.items():
        value = fields.number(name)
        if value is not None and value != getattr(config.sampling, setting, 0):  # penalties of these names are off
            found.append(name)
    return found


def _of_run(fields: Fields) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, setting in NAMES.items():
        of = _RANGES[setting]
        value = fields.whole(name) if of.whole else fields.number(name)
        if value is None:
            continue
        if not (of.low <= value <= of.high) or (of.open_below and value == of.low) or not math.isfinite(value):
            refuse(name, str(of))
        if found.setdefault(setting, value) != value:
            raise RequestRefused(f"{name!r} is another name of {setting!r}, and they differ: give one", name)
    if "top_k" in found:
        found["top_k"] = min(found["top_k"], EVERY) if found["top_k"] > 0 else EVERY
    if found.get("top_p") == 0:
        del found["top_p"]
        found["top_k"] = 1
    return found
