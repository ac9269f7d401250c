"""What a bundle's dtype costs in accuracy, measured on the simulated runtime against the model in fp32.

Perplexity on a text, and the Kullback-Leibler divergence and agreement on the best token, both against fp32.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rk3588 import bundle
from rk3588.bundle import Bundle
from rk3588.errors import BundleError, UsageError
from rk3588.hostlib import SimModel

from .cards.card import Variant, model_card, original_card, read_base
from .sources.base import CARD

WINDOW = 512  # tokens read at a time, each window from an empty context
REFERENCE = "fp32"
Array = npt.NDArray[np.float64]
Step = Callable[[int, int], None]  # told the tokens that were evaluated, by both models, and of how many


@dataclass(frozen=True)
class Accuracy:
    """Means over all positions that have a next token."""

    perplexity: float
    reference_perplexity: float
    divergence: float  # of fp32 from this dtype, in nats
    agreement: float  # share of positions with the same best token as fp32
    tokens: int
    text: str  # the name of what was read


def log_softmax(logits: npt.NDArray[np.float32]) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float64)


def windows(ids: list[int], size: int = WINDOW) -> list[list[int]]:
    return [part for start in range(0, len(ids), size) if len(part := ids[start : start + size]) > 1]


def compare(
    reference: SimModel, model: SimModel, parts: Sequence[list[int]], text: str, step: Step = lambda *_: None
) -> Accuracy:
    """Both models read the same windows; one window's logits are in memory at a time."""
    tokens, before = sum(map(len, parts)), 0

    def read(one: SimModel, ids: list[int]) -> Array:
        nonlocal before
        found = log_softmax(one.logits(ids, progress=lambda done: step(before + done, 2 * tokens))[:-1])
        before += len(ids)
        return found

    loss, reference_loss, divergence, same = [], [], [], []
    for ids in parts:
        truth, found = (read(each, ids) for each in (reference, model))
        rows = np.arange(len(found))
        loss.append(-found[rows, ids[1:]])
        reference_loss.append(-truth[rows, ids[1:]])
        divergence.append((np.exp(truth) * (truth - found)).sum(axis=1))
        same.append(truth.argmax(axis=1) == found.argmax(axis=1))
    return Accuracy(
        perplexity=float(np.exp(np.concatenate(loss).mean())),
        reference_perplexity=float(np.exp(np.concatenate(reference_loss).mean())),
        divergence=float(np.concatenate(divergence).mean()),
        agreement=float(np.concatenate(same).mean()),
        tokens=tokens,
        text=text,
    )


def reference_for(found: Bundle, others: Sequence[Bundle]) -> Bundle:
    """The fp32 bundle of the same model, among ``others`` or beside it; BundleError says how to get one."""
    beside = found.path.absolute().parent / f"{found.name}-rk3588-{REFERENCE}"
    candidates = [*others, *([bundle.read(beside)] if (beside / bundle.MANIFEST).is_file() else [])]
    files = _weight_sources(found)
    for other in candidates:
        if other.dtype == REFERENCE and other.sim_model and _weight_sources(other) == files:
            return other
    raise BundleError(
        f"{found.path} has no {REFERENCE} bundle of the same model beside it to compare with: make one with "
        f"rkconvert MODEL --name {found.name} -o {found.path.parent} --dtype {REFERENCE}"
    )


def _weight_sources(found: Bundle) -> tuple[Any, ...]:
    """What the weights are made of: the source's files, and adapters merged into them."""
    lora = found.manifest.get("lora", {})
    merged = lora.get("adapters", []) if lora.get("mode") == "merge" else []
    return sorted(f["sha256"] for f in found.manifest["source"]["files"]), [(a["name"], a["scale"]) for a in merged]


def measure(found: Bundle, reference: Bundle, text: str, name: str, tokens: int, step: Step) -> Accuracy:
    """``found`` on the first ``tokens`` tokens of ``text``."""
    if found.sim_model is None:
        raise BundleError(f"{found.path} has no {bundle.SIM_MODEL} to measure: convert with --target sim as well")
    assert reference.sim_model is not None
    with SimModel(reference.sim_model) as truth, SimModel(found.sim_model) as model:
        size = min(WINDOW, truth.info.context_length)
        parts = windows(truth.tokenise(text)[:tokens], size)
        if not parts:
            raise UsageError(f"{name} is too short: there is no token to predict")
        return compare(truth, model, parts, name, step)


def record(found: Bundle, accuracy: Accuracy) -> None:
    """Into the bundle's manifest and card. The bundle is replaced as a whole; its other files are not copied."""
    with bundle.new_folder(found.path.absolute(), replace=True) as folder:
        for entry in found.manifest["files"]:
            copy = folder / entry["path"]
            copy.parent.mkdir(exist_ok=True)
            if entry["path"] != CARD:
                _link_or_copy(found.path / entry["path"], copy)
        manifest = {key: value for key, value in found.manifest.items() if key not in ("schema", "files")}
        manifest["accuracy"] = asdict(accuracy)
        named = {**manifest, "files": found.manifest["files"]}
        card = model_card([Variant.of(Bundle(found.path, named))], original_card(read_base(found.path)))
        (folder / CARD).write_text(card, encoding="utf-8")
        bundle.write_manifest(folder, manifest)


def _link_or_copy(source: Path, copy: Path) -> None:
    try:
        os.link(source.resolve(), copy)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, copy)
