"""How often a small model answers simple questions rightly, by how its tokens are drawn:
`python -m tests.bench.sampling BUNDLE [SEEDS]`. The table in docs/sampling.md is what it prints.
"""

from __future__ import annotations

import os
import sys
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
LIBRARY = Sampling(0.8, 40, 0.9, 1.1)  # librkllmrt's own defaults
TRIED = (
    LIBRARY, LIBRARY._replace(repeat_penalty=1.0),
    *(DEFAULTS._replace(temperature=t) for t in (0.5, 0.3, 0.2, 0.1)),
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


def main() -> None:
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    print(f"right answers of {seeds} to each of: {'; '.join(QUESTIONS)}")
    for sampling in TRIED:
        tries = 1 if sampling.greedy else seeds
        right, long = measure(Path(sys.argv[1]), sampling, tries)
        print(f"{sampling}: {' '.join(map(str, right))} of {tries}; {long} of {tries * len(right)} cut off", flush=True)


if __name__ == "__main__":
    main()
