"""Bundles measured side by side: each window's logits are computed once by the reference and once by each of them.

Only one window's logits of two models are in memory at a time; of each token four numbers stay.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

import rk3588
from rk3588 import hostlib
from rk3588.bundle import Bundle
from rk3588.errors import UsageError
from rk3588.hostlib import SimModel

from . import costs, extras
from . import reference as references
from . import texts as reading
from .choices import Questions
from .opened import Candidate, Opened, Step, Tell
from .result import Accuracy, summary
from .store import Store
from .texts import Text
from .tokens import Tokens, compared

READING = "reading the text"


def candidates(bundles: Sequence[Bundle], act_scales: Sequence[str] = ()) -> list[Candidate]:
    """The rows that ``measure`` finds, in its order."""
    return [Candidate(one, mode) for one in bundles for mode in references.act_scales(one, act_scales)]


def measure(
    bundles: Sequence[Bundle],
    reference: Bundle,
    texts: Sequence[Text],
    tokens: int = 2048,
    *,
    name: str | None = None,
    window: int | None = None,
    score: str = "all",
    act_scales: Sequence[str] = (),
    asked: Sequence[Questions] = (),
    details: bool = False,
    resume: bool = False,
    step: Step = lambda *_: None,
    tell: Tell | None = None,
) -> list[Accuracy]:
    """Each of ``bundles`` beside ``reference`` on the first ``tokens`` tokens of ``texts``, in equal parts.

    One ``Accuracy`` for each bundle, or, with ``act_scales``, for each of ``candidates(bundles, act_scales)``.
    ``score``: ``all`` tokens, or the second ``half`` of each window, as llama-perplexity has it. ``asked`` are multiple
    choices. ``details`` are greedy continuations and layers. With ``resume`` what was found is kept until all is, and a
    second call goes on. ``tell`` gets sentences for the user, the first of them how long it will take.
    """
    rows = candidates(bundles, act_scales)
    with ExitStack() as stack:
        truth = stack.enter_context(SimModel(references.sim_model(reference)))
        models = [_open(stack, row, reference, truth) for row in rows]
        parts = reading.read(truth, texts, tokens, window, score)
        _check_alike(reference, truth, rows, models, texts, parts)
        opened = Opened(truth, rows, models, max(map(len, parts)) // 2 if score == "half" else 0)
        store = Store(_facts(reference, rows, parts, opened.first, asked)) if resume else None
        if tell:
            costs.tell_costs(opened, reference, parts, tokens, details, tell)
        found = _read_windows(opened, parts, store, step, tell)
        more = extras.found(opened, parts, asked, details, store, step, tell or (lambda _: None))
        read = sum(map(len, parts))
        called = name or ", ".join(dict.fromkeys(text.name for text in texts))
        results = [
            summary(own, read, called, reference=reference.dtype, act_scale=row.effective, **extra)
            for row, own, extra in zip(rows, found, more)
        ]
    if store:
        store.remove()
    return results


def compare(
    reference: SimModel,
    model: SimModel,
    parts: Sequence[list[int]],
    text: str,
    step: Callable[[int, int], None] = lambda *_: None,
) -> Accuracy:
    """Two opened models on the same windows."""
    opened = Opened(reference, [], [model], 0)
    (found,) = _read_windows(opened, parts, None, lambda _, done, total: step(done, total), None)
    return summary(found, sum(map(len, parts)), text)


def _open(stack: ExitStack, row: Candidate, reference: Bundle, truth: SimModel) -> SimModel:
    path = references.sim_model(row.bundle)
    if path.samefile(references.sim_model(reference)) and row.act_scale is None:
        return truth
    return stack.enter_context(SimModel(path, act_scale=row.act_scale))


def _check_alike(
    reference: Bundle,
    truth: SimModel,
    rows: Sequence[Candidate],
    models: Sequence[SimModel],
    texts: Sequence[Text],
    parts: Sequence[list[int]],
) -> None:
    """Logits are compared token by token, so that their vocabularies have to be the same."""
    sample = [text.text[:4096] for text in texts]
    known = [truth.tokenise(text) for text in sample]
    for row, model in zip(rows, models):
        if model.info.n_vocab != truth.info.n_vocab or known != [model.tokenise(text) for text in sample]:
            raise UsageError(
                f"{row.bundle.path} has another tokenizer than {reference.path}, so their tokens cannot be compared: "
                "give bundles of one model"
            )
        if (longest := max(map(len, parts))) > model.info.context_length:
            raise UsageError(
                f"{row.bundle.path} has a context of {model.info.context_length} tokens, less than a window of "
                f"{longest}: give a smaller --window"
            )


def _facts(reference: Bundle, rows: Sequence[Candidate], parts: Sequence[list[int]], *more: Any) -> Any:
    """All that figures depend on."""
    library = hostlib.find().stat()
    return [
        rk3588.__version__, [library.st_size, library.st_mtime_ns], os.environ.get("RKSIM_ACT_SCALE"),
        _digest(reference), [[_digest(row.bundle), row.act_scale] for row in rows], parts, more,
    ]  # fmt: skip


def _digest(found: Bundle) -> str:
    name = references.sim_model(found).name
    return str(next(entry["sha256"] for entry in found.manifest["files"] if entry["path"] == name))


def _read_windows(
    opened: Opened, parts: Sequence[list[int]], store: Store | None, step: Step, tell: Tell | None
) -> list[list[Tokens]]:
    """Of each model, each window's tokens."""
    found: list[list[Tokens]] = [[] for _ in opened.models]
    total, before, known = sum(map(len, parts)) * len(opened.evaluated), 0, 0
    for index, ids in enumerate(parts):
        shape = (len(opened.models), len(Tokens._fields), len(ids) - 1 - opened.first)
        kept = store.get(f"window-{index}", tokens=shape) if store else None
        if kept is None:
            if known and tell:
                tell(f"{known} of {len(parts)} windows were read before: going on from there")
                known = 0
            values = _read_window(opened, ids, functools.partial(_forward, step, before, total))
            if store:
                store.put(f"window-{index}", tokens=values)
        else:
            known += 1
            values = kept["tokens"]
        before += len(ids) * len(opened.evaluated)
        for own, rows in zip(found, values):
            own.append(Tokens(*rows))
    return found


def _forward(step: Step, before: int, total: int, done: int) -> None:
    step(READING, before + done, total)


def _read_window(opened: Opened, ids: list[int], step: Callable[[int], None]) -> Any:
    """Array [model][figure][token]."""
    first, done = opened.first, 0

    def logits(model: SimModel) -> Any:
        nonlocal done
        before = done
        found = model.logits(ids, progress=lambda count: step(before + count))
        done += len(ids)
        return found[first:-1]

    truth = logits(opened.reference)
    came = ids[first + 1 :]
    return np.stack(
        [compared(truth, truth if model is opened.reference else logits(model), came) for model in opened.models]
    )
