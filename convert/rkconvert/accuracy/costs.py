"""How long a measurement takes and what memory, found out before it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rk3588.bundle import Bundle
from rkconvert import memory

from . import greedy
from . import reference as references
from .opened import Opened, Tell
from .tokens import compared

_PROBE = 64  # tokens that are timed
_WRITTEN = 3


def tell_costs(
    opened: Opened, reference: Bundle, parts: Sequence[list[int]], wanted: int, details: bool, tell: Tell
) -> None:
    """Minutes, from a few tokens, and memory; and where there are far fewer than the ``wanted`` tokens."""
    ids, tokens, seconds = parts[0][:_PROBE], sum(map(len, parts)), 0.0
    logits = opened.reference.logits(ids[:1])
    for model in opened.evaluated:
        model.logits(ids[:1])  # what is read from the disk is read once
        started = time.monotonic()
        logits = model.logits(ids)
        seconds += (time.monotonic() - started) / len(ids)
    started = time.monotonic()
    compared(logits[:-1], logits[:-1], ids[1:])
    seconds += (time.monotonic() - started) / len(ids) * len(opened.models)
    seconds *= tokens
    if details:
        started = time.monotonic()
        opened.reference.greedy(ids[:1], _WRITTEN)
        seconds += (time.monotonic() - started) / _WRITTEN * greedy.MOST * greedy.PROMPTS * 2
    others = [row.bundle for row, model in zip(opened.candidates, opened.models) if model is not opened.reference]
    window = max(map(len, parts)) * opened.reference.info.n_vocab
    needed = sum(references.sim_model(one).stat().st_size for one in [reference, *others]) + 2 * 4 * window
    free = memory.machine().most
    tell(
        f"{tokens:,} tokens in {len(parts)} window{'s'[: len(parts) > 1]}, read by {len(opened.evaluated)} models: "
        f"about {_duration(seconds)} and {needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free"
    )
    if tokens <= wanted - max(map(len, parts)):
        tell(f"there are no more than these of the {wanted:,} tokens that --tokens allows: the text is shorter")
    if len(parts) == 1:
        tell("one window has no intervals: give more --tokens, a longer text or a smaller --window for them")
    if needed > free:
        tell("that is more than there is, so weights will be read from the disk again and again: give fewer bundles")


def _duration(seconds: float) -> str:
    return f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.1f} minutes"


