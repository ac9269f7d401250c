"""What a bundle's dtype costs in accuracy, measured on the simulated runtime beside the same model in fp32.

docs/accuracy.md says what each figure means. ``measure`` does bundles, ``compare`` two opened models.
"""

from __future__ import annotations

from .measuring import candidates, compare, measure
from .record import record
from .reference import common_reference, reference_for
from .result import Accuracy
from .texts import BUILT_IN, WINDOW, Text, built_in, load, windows

__all__ = [
    "BUILT_IN", "WINDOW", "Accuracy", "Text", "built_in", "candidates", "common_reference", "compare", "load",
    "measure", "record", "reference_for", "windows",
]  # fmt: skip
