"""The ways of scaling RoPE, each brought down to divisors of the inverse frequencies."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from typing import Any

from rk3588.errors import CheckpointError

from .fields import MOST_CONTEXT, Fields, shown
from .model import RopeScaling


def scaling(fields: Fields, dims: int, theta: float, context: int) -> RopeScaling:
    """What ``rope_scaling`` (or transformers 5's ``rope_parameters``) of a config.json asks for.

    ``dims`` of a head turn with the base ``theta``; ``context`` is the model's longest, where the settings leave it to
    that. CheckpointError for a way that is not known.
    """
    way = kind(fields)
    if way in (None, "default"):
        only(fields, _COMMON)
        return RopeScaling()
    if not isinstance(way, str) or way not in _WAYS:
        known = ", ".join(repr(way) for way in _WAYS)
        raise CheckpointError(f"{fields.where}: RoPE scaling {shown(way)} is not supported, only {known}")
    only(fields, _COMMON | _KEYS[_WAYS[way]])
    return _WAYS[way](fields, dims, theta, context)


def kind(fields: Fields) -> Any:
    """What the way of scaling is called, in newer files and in older ones; None: it is not said."""
    return fields.get("rope_type") if fields.get("rope_type") is not None else fields.get("type")


def only(fields: Fields, known: Set[str]) -> None:
    """CheckpointError for a key beside ``known``."""
    for key, value in sorted(fields.values.items()):
        if key not in known and value is not None:
            raise CheckpointError(
                f"{fields.where} has {key} ({shown(value)}), which this version does not know there and which may "
                "change what the model computes"
            )


def _linear(fields: Fields, dims: int, _theta: float, _context: int) -> RopeScaling:
    return RopeScaling((fields.number("factor"),) * (dims // 2))


def _dynamic(fields: Fields, _dims: int, _theta: float, _context: int) -> RopeScaling:
    """Dynamic NTK scales nothing up to the original context, and a longer one is not offered."""
    fields.number("factor")
    return RopeScaling()


def _llama3(fields: Fields, dims: int, theta: float, context: int) -> RopeScaling:
    """Llama 3.1's: slow frequencies are divided, fast ones stay, those between go over smoothly."""
    factor, original = fields.number("factor"), fields.number("original_max_position_embeddings", float(context))
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if low >= high:
        raise CheckpointError(
            f"{fields.where}: RoPE scaling has low_freq_factor {low:g}, not below high_freq_factor {high:g}"
        )
    found = []
    for i in range(dims // 2):
        turns = original * theta ** (-2 * i / dims) / (2 * math.pi)  # within the original context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return RopeScaling(tuple(found))


def _yarn(fields: Fields, dims: int, theta: float, context: int) -> RopeScaling:
    """YaRN (Peng et al. 2023, sections 3.2 to 3.4), with the defaults that transformers has."""
    original = fields.number("original_max_position_embeddings", float(context))
    factor = fields.number("factor")

    def dimension(turns: float) -> float:
        """The one that makes so many turns within the original context."""
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(fields.number("beta_fast", 32.0)), dimension(fields.number("beta_slow", 1.0))
    if fields.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    high = high + 0.001 if low == high else high
    found = []
    for i in range(dims // 2):
        kept = 1 - min(max((i - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - kept) / factor + kept))
    return RopeScaling(tuple(found), attention_factor=_yarn_attention(fields, factor))


def _yarn_attention(fields: Fields, factor: float) -> float:
    def grown(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0

    if fields.get("attention_factor") is not None:
        return fields.number("attention_factor")
    if fields.get("mscale") and fields.get("mscale_all_dim"):
        return grown(fields.number("mscale")) / grown(fields.number("mscale_all_dim"))
    return grown(1.0)


def _longrope(fields: Fields, dims: int, _theta: float, context: int) -> RopeScaling:
    """LongRoPE (Ding et al. 2024): factors as they were searched for, one set for short contexts and one for long."""
    original = fields.whole("original_max_position_embeddings", context, MOST_CONTEXT)
    factor = fields.number("factor", context / original)
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeScaling(
        fields.numbers("short_factor", dims // 2),
        fields.numbers("long_factor", dims // 2),
        original,
        fields.number("attention_factor", attention),
    )


_WAYS: dict[str, Callable[[Fields, int, float, int], RopeScaling]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # what Phi-3 called it first
    "dynamic": _dynamic,
}
BY_ORIGINAL_CONTEXT = ("llama3", "yarn", "longrope", "su")
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
_KEYS: dict[Callable[[Fields, int, float, int], RopeScaling], set[str]] = {
    _linear: {"factor"},
    _llama3: {"factor", "low_freq_factor", "high_freq_factor"},
    _yarn: {"factor", "beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"},
    _longrope: {"factor", "short_factor", "long_factor", "attention_factor"},
    _dynamic: {"factor"},
}
