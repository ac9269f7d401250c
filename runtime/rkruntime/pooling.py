"""From the hidden states of a text's tokens to one embedding: their mean, of length 1.

Of the standard library only. What costs time here is a sum for each dimension, and that runs in C.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from array import array
from typing import Optional

from rk3588.errors import RuntimeFailure, UsageError

from .abi import HiddenStates

_DIGITS = 8  # significant ones: a float32 has between 7 and 9


class TooManyDimensions(UsageError):
    """More are asked for than a model's hidden layer has."""


def embedding(states: HiddenStates, dimensions: Optional[int] = None) -> array[float]:
    """The mean over the tokens, cut to its first ``dimensions``, scaled to length 1.

    TooManyDimensions, or RuntimeFailure for states that have no direction.
    """
    size, tokens = states.size, states.tokens
    if dimensions is not None and dimensions > size:
        raise TooManyDimensions(f"this model's embeddings have {size} dimensions: {dimensions} are too many")
    kept = size if dimensions is None else dimensions
    try:
        means = [math.fsum(states.values[at::size]) / tokens for at in range(kept)]
        length = math.sqrt(math.fsum(mean * mean for mean in means))
    except (ValueError, OverflowError):  # of infinities, which fsum does not add
        length = math.nan
    if not math.isfinite(length) or not length:
        raise RuntimeFailure("the model's hidden states are no finite numbers other than 0: they have no direction")
    return array("f", [mean / length for mean in means])


def as_json(vector: array[float]) -> str:
    return json.dumps([float(f"{value:.{_DIGITS}g}") for value in vector], separators=(",", ":"))


def as_base64(vector: array[float]) -> str:
    """The bytes of its float32 numbers, the lowest first, as OpenAI's clients read them."""
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode("ascii")
