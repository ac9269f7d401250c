"""What is measured beside the windows: greedy continuations, each layer by itself, and multiple choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import choices, greedy, layers
from .choices import Questions
from .opened import Opened, Step, Tell
from .store import Store


def found(
    opened: Opened,
    parts: Sequence[list[int]],
    asked: Sequence[Questions],
    details: bool,
    store: Store | None,
    step: Step,
    tell: Tell,
) -> list[dict[str, Any]]:
    """Of each model, under the names that they have in ``Accuracy``."""
    rows: list[dict[str, Any]] = [{} for _ in opened.models]
    if details:
        for row, written, snr in zip(rows, _greedy(opened, parts, store, step), _layers(opened, parts, step, tell)):
            row.update(greedy=written, layers=snr)
    answers = [choices.measure(opened, each, number, store, step, tell) for number, each in enumerate(asked)]
    for index, row in enumerate(rows):
        row["choices"] = [scores[index] for scores in answers]
    return rows


def _greedy(
    opened: Opened, parts: Sequence[list[int]], store: Store | None, step: Step
) -> list[dict[str, Any] | None]:
    prompts = greedy.pieces(parts, greedy.PROMPT, greedy.PROMPTS, opened.bos)
    if not prompts:
        return [None] * len(opened.models)
    shape = (len(opened.models) + 1, len(prompts))  # the first row: how long the reference's own are
    kept = store.get("greedy", lengths=shape) if store else None
    if kept is None:
        wanted = greedy.continuations(opened.reference, prompts, lambda *at: step("greedy continuations", *at))
        rows = [np.array([len(text) for text in wanted], np.float64)]
        for candidate, model in zip(opened.candidates, opened.models):
            step("greedy continuations", len(rows), len(opened.models))
            # Tokens of a tile share a scale, so that a text read at once is not what was written one by one.
            rows.append(greedy.lengths(model, prompts, wanted, decode=candidate.has_tiles))
        kept = {"lengths": np.stack(rows)}
        if store:
            store.put("greedy", **kept)
    ends, *own = kept["lengths"]
    return [greedy.summary(lengths, ends.tolist()) for lengths in own]


def _layers(opened: Opened, parts: Sequence[list[int]], step: Step, tell: Tell) -> list[dict[str, Any] | None]:
    """None of what is the reference itself, or has hidden states that mean something else."""
    reference = opened.reference
    pieces = greedy.pieces(parts, layers.TOKENS, layers.PIECES, opened.bos)
    measured = []
    for candidate, model in zip(opened.candidates, opened.models):
        if model is reference or not pieces:
            continue
        if layers.same_basis(reference, model, pieces[0]):
            measured.append(model)
        else:
            tell(f"{candidate.bundle.path} has other hidden states than the reference (rotated?): its layers stay out")
    values = layers.ratios(reference, measured, pieces, lambda *at: step("layers", *at))
    by_model = dict(zip(map(id, measured), values))
    return [layers.summary(by_model[id(model)]) if id(model) in by_model else None for model in opened.models]
