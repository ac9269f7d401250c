"""How long a bundle writes what the reference writes, where each takes the likeliest token every time.

The *greedy divergence length* of a prompt: how many tokens of the reference's greedy continuation the bundle's own
begins with. The continuation has at most ``MOST`` tokens, or ends with the model's end token; one that is the same to
its end counts with its whole length. Prompts are ``PROMPT`` tokens from ``PROMPTS`` places of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rk3588.hostlib import SimModel

from .statistics import mean_interval

PROMPTS, PROMPT, MOST = 8, 32, 48
Lengths = npt.NDArray[np.float64]


def pieces(parts: Sequence[list[int]], size: int, count: int, bos: list[int]) -> list[list[int]]:
    """``count`` pieces of at most ``size`` tokens, from places of the windows ``parts`` as far apart as there are. Each
    begins with ``bos``, as the windows do."""
    size -= len(bos)
    bodies = [part[len(bos) :] for part in parts]
    found = [bos + body[i : i + size] for body in bodies for i in range(0, len(body), size)]
    found = [piece for piece in found if len(piece) > 1]
    places = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int))
    return [found[i] for i in places]


def continuations(
    reference: SimModel, prompts: Sequence[list[int]], step: Callable[[int, int], None]
) -> list[list[int]]:
    """The reference's, each up to its end token."""
    found, total = [], MOST * len(prompts)
    for number, prompt in enumerate(prompts):

        def told(done: int, before: int = MOST * number) -> None:
            step(before + done, total)

        ids = reference.greedy(prompt, MOST, told)
        end = ids.index(reference.info.eos_id) + 1 if reference.info.eos_id in ids else MOST
        found.append(ids[:end])
    return found


def lengths(
    model: SimModel, prompts: Sequence[list[int]], wanted: Sequence[list[int]], *, decode: bool
) -> Lengths:
    """Of each prompt. Up to the first difference both have read the same, so that one evaluation of the reference's
    text tells it; ``decode`` writes the text token by token, where a token's neighbours change its arithmetic."""
    found = []
    for prompt, text in zip(prompts, wanted):
        if decode:
            own = model.greedy(prompt, len(text))
        else:
            own = model.logits(prompt + text[:-1])[len(prompt) - 1 :].argmax(axis=1).tolist()
        found.append(next((i for i, (a, b) in enumerate(zip(own, text)) if a != b), len(text)))
    return np.array(found, np.float64)


def summary(found: Lengths, wanted: Sequence[int]) -> dict[str, Any]:
    bounds = mean_interval([found[i : i + 1] for i in range(len(found))])
    return {
        "mean": float(found.mean()),
        **({"interval": [max(bounds[0], 0.0), bounds[1]]} if bounds else {}),
        "median": float(np.median(found)),
        "same_to_the_end": float((found == np.array(wanted)).mean()),
        "prompts": len(found),
        "most": MOST,
    }
