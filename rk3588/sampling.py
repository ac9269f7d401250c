"""How the next token is drawn: what a model asks for, what a user says, and what holds where neither does.

The names are those of ``generation_config.json``, where the model's wishes come from, and in a manifest's ``sampling``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional


class Sampling(NamedTuple):
    """All four, as librkllmrt takes them when it loads a model, and from 1.3 on with each run. ``temperature`` 0:
    greedy."""

    temperature: float
    top_k: int
    top_p: float
    repeat_penalty: float

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    def parameters(self) -> dict[str, Any]:
        """As RKLLM takes them. Greedy is said by ``top_k``: what a temperature of 0 means to it is not documented."""
        return {**self._asdict(), "top_k": 1 if self.greedy else self.top_k, "temperature": self.temperature or None}

    def for_run(self, asked: Mapping[str, float]) -> dict[str, Any]:
        """For one run of a library that takes sampling with it: these, but for what is ``asked`` by the same names,
        and ``PENALTIES``."""
        wanted: dict[str, Any] = {name: asked[name] for name in self._fields if name in asked}
        mine = self._replace(**wanted)
        return {**mine.parameters(), **{name: asked[name] for name in PENALTIES if name in asked}}

    def __str__(self) -> str:
        penalty = f"repeat_penalty {self.repeat_penalty:g}"
        if self.greedy:
            return f"greedy, {penalty}"
        return f"temperature {self.temperature:g}, top_k {self.top_k}, top_p {self.top_p:g}, {penalty}"


# For small models, which the library's own 0.8 and 1.1 make babble: docs/sampling.md has the figures.
DEFAULTS = Sampling(temperature=0.2, top_k=40, top_p=0.9, repeat_penalty=1.0)
EVERY = 1 << 20  # more tokens than any vocabulary has: top_k that keeps all
PENALTIES = ("frequency_penalty", "presence_penalty")  # of a run alone; of what a model is loaded with they are 0


def _number(low: float, high: float, open_below: bool = False) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return (low < value if open_below else low <= value) and value <= high  # neither is true of nan

    return fits


def _is_top_k(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value <= EVERY


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "do_sample": lambda value: isinstance(value, bool),
    "temperature": _number(0, 100),
    "top_k": _is_top_k,  # 0 and -1: all of them
    "top_p": _number(0, 1, open_below=True),
    "repetition_penalty": _number(0, 100, open_below=True),
}
_GGUF = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def of_model(settings: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a ``generation_config.json`` says of sampling, and remarks on values that cannot be meant."""
    found, remarks = {}, []
    for name, fits in _FITS.items():
        value = settings.get(name)
        if value is None:
            continue
        if fits(value):
            found[name] = value
        else:
            remarks.append(f"{where}: {name} is {_short(value)}, which is no value for it, and is left out")
    return found, tuple(remarks)


def of_gguf(metadata: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The same from a GGUF file's ``general.sampling.*``; its numbers are float32."""
    said = {name: metadata[key] for key, name in _GGUF.items() if key in metadata}
    rounded = {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in said.items()}
    return of_model(rounded, where)


def is_valid(entry: Any) -> bool:
    """Whether a manifest's ``sampling`` is one."""
    return isinstance(entry, dict) and all(name in _FITS and _FITS[name](value) for name, value in entry.items())


def asks(own: Mapping[str, Any]) -> bool:
    """Whether a model's wishes say more than that it is to be drawn from, somehow."""
    return any(name != "do_sample" or value is False for name, value in own.items())


def settle(own: Mapping[str, Any], asked: Mapping[str, Any]) -> Sampling:
    """What is ``asked`` (by the names of ``Sampling``; None: nothing), else the model's ``own``, else ``DEFAULTS``."""
    said = {name: value for name, value in asked.items() if value is not None}
    wishes: dict[str, Any] = {}
    if own.get("do_sample") is False and not said.keys() & {"temperature", "top_k", "top_p"}:
        wishes["temperature"] = 0.0
    elif own.get("temperature") is not None:
        wishes["temperature"] = own["temperature"]
    top_k: Optional[int] = own.get("top_k")
    if top_k is not None:
        wishes["top_k"] = top_k if top_k > 0 else EVERY
    for name, theirs in (("top_p", "top_p"), ("repeat_penalty", "repetition_penalty")):
        if theirs in own:
            wishes[name] = own[theirs]
    return DEFAULTS._replace(**{**wishes, **{name: said[name] for name in Sampling._fields if name in said}})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
