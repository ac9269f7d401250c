"""``--dataset generate[:N]``: calibration data that the model writes itself, in fp16 on the simulated runtime.

As Rockchip's own script does it with transformers, and LLM-QAT (arXiv:2305.17888) advises: a few tokens are the
likeliest, so that the answer begins sensibly, and the rest is drawn, so that answers differ. The same model, seed and
settings write the same data.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np
import numpy.typing as npt

from rk3588 import quant
from rk3588.errors import CheckpointError, UsageError
from rk3588.hostlib import SimModel

from . import calibration, memory
from .artifact.layout import make_artifact
from .calibration import REFERENCE, Generate, Pair
from .plan import available_cores
from .sources.base import Source
from .tokenizers.vocabulary import Vocabulary

LABEL = "writing calibration data"
_ROOM = 256 << 20  # bytes of memory beside the weights
_DECODED = 1.5e9  # weights a second on one core, as measured: decoding reads them all for each token


def check(source: Source, asked: Generate) -> str:
    """What to expect, in a sentence; UsageError where this machine has too little memory for the model."""
    needed = make_artifact(source.config, quant.scheme(REFERENCE)).data_bytes + _ROOM
    free = memory.machine().most
    if needed > free:
        raise UsageError(
            f"--dataset {asked}: the model takes {needed / 1e9:.1f} GB of memory in {REFERENCE}, and "
            f"{free / 1e9:.1f} GB are free; give a --dataset FILE"
        )
    seconds = asked.samples * asked.max_new_tokens * source.parameters / _DECODED / available_cores()
    minutes = max(round(seconds / 60), 1)
    return (
        f"the model writes {asked.samples} answers of up to {asked.max_new_tokens} tokens to calibrate with: about "
        f"{minutes} minute{'s'[: minutes > 1]}"
    )


def prompts() -> list[str]:
    text = resources.files("rkconvert").joinpath("data/prompts.json").read_text(encoding="utf-8")
    found: list[str] = json.loads(text)
    return found


def write(
    model: SimModel, vocabulary: Vocabulary, asked: Generate, step: Callable[[int, int], None] = lambda *_: None
) -> list[Pair]:
    """Prompts in the model's template, and what it answers. ``step`` is told tokens; more than there are prompts, and
    each is answered again, otherwise."""
    known = prompts()
    ends = {i for i in (*vocabulary.eos_ids, vocabulary.eos) if i is not None and i >= 0}
    total, found = asked.samples * asked.max_new_tokens, list[Pair]()
    # Whatever their number, prompts of all languages are among them.
    order = random.Random(asked.seed).sample(range(len(known)), len(known))
    with calibration.renderer(vocabulary) as render:
        said = [known[order[number % len(known)]] for number in range(asked.samples)]
        questions = [render([{"role": "user", "content": words}]) for words in said]
    for number, question in enumerate(questions):
        ids = _tokens(model, vocabulary, question)
        drawn = random.Random(hashlib.sha256(f"{asked.seed}:{number}".encode()).digest())

        def told(done: int, before: int = number * asked.max_new_tokens) -> None:
            step(before + done, total)

        answer = _answer(model, ids, asked, ends, drawn, told)
        found.append((question, model.detokenise(answer, skip_special=True).decode("utf-8", "ignore")))
    step(total, total)
    return found


def _tokens(model: SimModel, vocabulary: Vocabulary, text: str) -> list[int]:
    bos = vocabulary.text(vocabulary.bos)
    return model.tokenise(text, add_bos=bool(model.info.add_bos) and not (bos and text.startswith(bos)))


def _answer(
    model: SimModel,
    ids: list[int],
    asked: Generate,
    ends: set[int],
    drawn: random.Random,
    step: Callable[[int], None],
) -> list[int]:
    """Token for token, behind a cache that keeps what was read."""
    room = model.info.context_length - len(ids)
    if room <= asked.greedy:
        raise CheckpointError(
            f"a context of {model.info.context_length} tokens is too short to write calibration data in: give a "
            "--dataset FILE"
        )
    wanted = min(asked.max_new_tokens, room)
    logits, found = model.next_logits(ids, room=len(ids) + wanted), list[int]()
    forbidden = [i for i in ends if i < len(logits)]
    while True:
        begun = len(found) >= asked.greedy
        if not begun:
            logits[forbidden] = -np.inf
        token = draw(logits, [*ids, *found], asked, drawn) if begun else int(logits.argmax())
        if token in ends:
            return found
        found.append(token)
        step(len(found))
        if len(found) == wanted:
            return found
        logits = model.next_logits([token], kept=len(ids) + len(found) - 1)


def draw(logits: npt.NDArray[np.float32], before: Sequence[int], asked: Generate, drawn: random.Random) -> int:
    """One token, as the runtime draws: penalty, top k, top p, temperature."""
    values = logits.astype(np.float64)
    recent = sorted({*before[-64:]})
    old = values[recent]
    values[recent] = np.where(old > 0, old / asked.repeat_penalty, old * asked.repeat_penalty)
    most = min(asked.top_k, len(values))
    able = np.flatnonzero(values >= np.partition(values, -most)[-most])
    likeliest = able[np.lexsort((able, -values[able]))][:most]  # of the same logit the lower id
    shares = np.exp(values[likeliest] - values[likeliest[0]])
    kept = int(np.searchsorted(np.cumsum(shares) / shares.sum(), asked.top_p)) + 1
    weights = np.exp((values[likeliest[:kept]] - values[likeliest[0]]) / asked.temperature)
    at = np.searchsorted(np.cumsum(weights) / weights.sum(), drawn.random(), side="right")
    return int(likeliest[min(int(at), kept - 1)])
