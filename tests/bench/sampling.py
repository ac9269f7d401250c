"""How often a small model answers simple questions rightly, by how its tokens are drawn:
`python -m tests.bench.sampling BUNDLE [SEEDS]`. And how answers to what people type first end: by themselves, as
a loop, or not at all. The tables in docs/sampling.md are what it prints.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

from rk3588.sampling import DEFAULTS, Sampling
from rkruntime.model import Model, Settings

QUESTIONS = {
    "What is the capital of France?": ("Paris",),
    "Who wrote Romeo and Juliet?": ("Shakespeare",),
    "How many days are in a week?": ("seven", "7"),
    "What is the largest planet in our solar system?": ("Jupiter",),
    "What is the boiling point of water in degrees Celsius?": ("100",),
    "What colour is the sky on a clear day?": ("blue",),
}
FIRST = (
    "Hi, who are you?", "What can you do?", "Tell me a joke.", "Translate 'good morning' to German.", "Hello!",
    "What is the largest planet?", "Write a haiku about rain.", "How do I boil an egg?",
)  # fmt: skip
LONG = 600  # tokens, after which an answer will not end
LIBRARY = Sampling(0.8, 40, 0.9, 1.1)  # librkllmrt's own defaults
TRIED = (
    LIBRARY, LIBRARY._replace(repeat_penalty=1.0),
    *(DEFAULTS._replace(temperature=t) for t in (0.7, 0.5, 0.3, 0.2, 0.1)),
    DEFAULTS._replace(temperature=0.5, top_p=0.7), DEFAULTS._replace(top_k=50, top_p=0.95),
    DEFAULTS._replace(repeat_penalty=1.1), DEFAULTS._replace(temperature=0.0),
)  # fmt: skip


def measure(bundle: Path, sampling: Sampling, seeds: int) -> tuple[list[int], int]:
    """Right answers to each question, and answers of 100 tokens, which babble."""
    right, long = [0] * len(QUESTIONS), 0
    for seed in range(1, seeds + 1):
        os.environ["RKSIM_SEED"] = str(seed)
        with Model(bundle, Settings(max_tokens=100, **sampling._asdict()), lambda _: None) as model:
            for number, (question, words) in enumerate(QUESTIONS.items()):
                answer = "".join(model.answer(model.prompts.chat([{"role": "user", "content": question}])))
                right[number] += any(word in answer for word in words)
                long += model.cost.finish_reason == "length"
    return right, long


def endings(bundle: Path, sampling: Sampling, seeds: int) -> Counter[str]:
    """How answers to ``FIRST`` end: "stop", or what they were cut by."""
    found: Counter[str] = Counter()
    for seed in range(1, seeds + 1):
        os.environ["RKSIM_SEED"] = str(seed)
        with Model(bundle, Settings(max_tokens=LONG, **sampling._asdict()), lambda _: None) as model:
            for question in FIRST:
                for _ in model.answer(model.prompts.chat([{"role": "user", "content": question}])):
                    pass
                found[model.cost.cut_by or model.cost.finish_reason] += 1
    return found


def main() -> None:
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    print(f"right answers of {seeds} to each of: {'; '.join(QUESTIONS)}")
    for sampling in TRIED:
        tries = 1 if sampling.greedy else seeds
        right, long = measure(Path(sys.argv[1]), sampling, tries)
        print(f"{sampling}: {' '.join(map(str, right))} of {tries}; {long} of {tries * len(right)} cut off", flush=True)
        ends = endings(Path(sys.argv[1]), sampling, min(tries, 4))
        print(f"  what people type first: {dict(ends)} of {sum(ends.values())}", flush=True)


if __name__ == "__main__":
    main()
