"""Multiple choice, scored as EleutherAI's lm-evaluation-harness scores it.

A line of JSON is one question: ``{"query": "…", "choices": ["…", …], "gold": 0}``. A choice stands behind the query and
a space. Its score is the sum of the logarithms of its tokens' probabilities; ``acc`` is the share of questions whose
best choice is the right one, ``acc_norm`` the same with each sum divided by the choice's characters. Where query ends
and choice begins is settled as the harness does it (``_encode_pair``): spaces at the query's end belong to the choice,
and a choice's tokens are those of the whole beyond as many as the query alone has.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rk3588 import files
from rk3588.errors import UsageError
from rk3588.hostlib import SimModel

from .opened import Opened, Step, Tell
from .statistics import mean_interval
from .store import Store

DELIMITER = " "
_MOST_BYTES, _MOST_QUESTIONS, _MOST_CHOICES = 64 << 20, 100_000, 64
_FORM = '{"query": "…", "choices": ["…", "…"], "gold": 0}'
_TOGETHER = 16  # questions that are kept at a time
_KEYS = {"query", "choices", "gold"}
Array = npt.NDArray[np.float64]


class Question(NamedTuple):
    query: str
    choices: tuple[str, ...]
    gold: int
    line: int


class Questions(NamedTuple):
    name: str
    items: tuple[Question, ...]


def load(path: Path, tell: Tell = lambda _: None) -> Questions:
    """UsageError names the line that is wrong."""
    try:
        text = files.read_text(path, _MOST_BYTES, None, UsageError)
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: give questions, a line of JSON each: {_FORM}") from None
    items: list[Question] = []
    unread: set[str] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            if len(items) == _MOST_QUESTIONS:
                raise UsageError(f"{path} has more than {_MOST_QUESTIONS:,} questions: give fewer")
            where = f"{path}, line {number}"
            found = _object(line, where)
            unread |= set(found) - _KEYS
            items.append(_question(found, number, where))
    if not items:
        raise UsageError(f"{path} has no question: give a line of JSON for each: {_FORM}")
    if unread:
        tell(f"{path}: {', '.join(sorted(unread)[:5])} of its questions is not read, only query, choices and gold")
    return Questions(path.name, tuple(items))


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON ({error}): each line is to be {_FORM}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{where} is no object: each line is to be {_FORM}")
    return found


def _question(found: dict[str, Any], line: int, where: str) -> Question:
    query, choices, gold = (found.get(key) for key in ("query", "choices", "gold"))
    if not isinstance(query, str):
        raise UsageError(f"{where}: query is to be a text, as in {_FORM}")
    if not (isinstance(choices, list) and 2 <= len(choices) <= _MOST_CHOICES):
        raise UsageError(f"{where}: choices is to be a list of 2 to {_MOST_CHOICES} texts, as in {_FORM}")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise UsageError(f"{where}: each of the choices is to be a text that is not empty")
    if type(gold) is not int or not 0 <= gold < len(choices):
        raise UsageError(f"{where}: gold is to be the number of the right choice, 0 to {len(choices) - 1}")
    return Question(query, tuple(choices), gold, line)


def encode_pair(model: SimModel, query: str, choice: str) -> tuple[list[int], list[int]]:
    """Tokens of the query, and of what is scored behind it."""
    rest = DELIMITER + choice
    spaces = len(query) - len(query.rstrip())
    if spaces:
        query, rest = query[:-spaces], query[-spaces:] + rest
    if not query:
        return _after_nothing(model, rest)
    before = model.tokenise(query, add_bos=_wants_bos(model, query))
    whole = model.tokenise(query + rest, add_bos=_wants_bos(model, query))
    return before, whole[len(before) :]


def _after_nothing(model: SimModel, rest: str) -> tuple[list[int], list[int]]:
    """The model's first token stands where there is no query, or its end token where it has none."""
    first = model.info.bos_id if model.info.bos_id >= 0 else model.info.eos_id
    ids = model.tokenise(rest)
    return (ids[:1], ids[1:]) if ids[0] == first else ([first], ids)


def _wants_bos(model: SimModel, text: str) -> bool:
    """Not a second one before a text that begins with it."""
    info = model.info
    return bool(info.add_bos) and not (info.bos_id >= 0 and model.tokenise(text)[:1] == [info.bos_id])


def likelihoods(model: SimModel, question: Question, name: str) -> list[float]:
    """Of each choice the logarithm of its probability behind the query."""
    known: dict[tuple[int, ...], Any] = {}  # choices of one token share the logits behind the query
    found = []
    for choice in question.choices:
        before, rest = encode_pair(model, question.query, choice)
        if not before or not rest or len(rest) > model.info.context_length:
            raise UsageError(
                f"{name}, line {question.line}: the choice {choice[:60]!r} has {len(rest)} tokens behind {len(before)} "
                f"of the query; both need one, and the choice at most {model.info.context_length}"
            )
        ids = tuple((before + rest)[-(model.info.context_length + 1) :][:-1])
        if ids not in known:
            known = {ids: model.logits(list(ids))}
        rows = known[ids][-len(rest) :].astype(np.float64)
        most = rows.max(axis=1)
        total = most + np.log(np.exp(rows - most[:, None]).sum(axis=1))
        found.append(float((rows[np.arange(len(rest)), rest] - total).sum()))
    return found


def measure(
    opened: Opened, asked: Questions, number: int, store: Store | None, step: Step, tell: Tell
) -> list[dict[str, Any]]:
    """The scores of each model of ``opened``; ``number``: which of several files these questions are."""
    models, items = opened.evaluated, asked.items
    rows: list[list[Array]] = [[] for _ in models]
    for start in range(0, len(items), _TOGETHER):
        part, began = items[start : start + _TOGETHER], time.monotonic()
        sizes = [len(question.choices) for question in part]
        name, shape = f"questions-{number}-{start}", (len(models), sum(sizes))
        kept = store.get(name, scores=shape) if store else None
        if kept is None:
            scores = []
            for index, model in enumerate(models):
                for place, question in enumerate(part):
                    done = start * len(models) + index * len(part) + place
                    step(f"questions of {asked.name}", done, len(items) * len(models))
                    scores += likelihoods(model, question, asked.name)
            kept = {"scores": np.array(scores).reshape(shape)}
            if store:
                store.put(name, **kept)
            if start == 0 and len(items) > len(part):
                minutes = (time.monotonic() - began) / 60 * (len(items) / len(part) - 1)
                tell(f"{len(items):,} questions of {asked.name}: about {minutes:.1f} minutes")
        for own, values in zip(rows, kept["scores"]):
            own += np.split(values, np.cumsum(sizes)[:-1])
    found = {id(model): scored(items, own) for model, own in zip(models, rows)}
    reference = found[id(opened.reference)]
    return [_summary(asked.name, found[id(model)], reference) for model in opened.models]


def scored(items: Sequence[Question], rows: Sequence[Array]) -> npt.NDArray[np.int64]:
    """Of each question the best choice, the best by characters, and the right one."""
    out = []
    for question, values in zip(items, rows):
        characters = np.array([float(len(choice)) for choice in question.choices])
        out.append((int(values.argmax()), int((values / characters).argmax()), question.gold))
    return np.array(out)


def _summary(name: str, found: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]) -> dict[str, Any]:
    best, by_length, gold = found.T
    row: dict[str, Any] = {"name": name, "questions": len(found)}
    for key, chosen, theirs in (("acc", best, reference[:, 0]), ("acc_norm", by_length, reference[:, 1])):
        right = (chosen == gold).astype(np.float64)
        row[key] = float(right.mean())
        if bounds := mean_interval([right[i : i + 1] for i in range(len(right))]):
            row[f"{key}_stderr"] = float(right.std(ddof=1) / math.sqrt(len(right)))
            row[f"{key}_interval"] = [max(bounds[0], 0.0), min(bounds[1], 1.0)]
        row[f"reference_{key}"] = float((theirs == gold).mean())
    row["same_answer"] = float((best == reference[:, 0]).mean())
    return row
