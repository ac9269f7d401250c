"""What is to be measured: tests by llama-bench's names, how often, and with how many clients at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rk3588.errors import UsageError

PROMPT, ANSWER, FIRST = "pp", "tg", "ttft"  # prefill, decode, time to the first token
TTFT_TOKENS = 64  # of the prompt, as in the published tables of Llama 3.2's quantised models
MOST_TOKENS = 1 << 17
MOST_CLIENTS = 64
MOST_REPETITIONS = 1000
MOST_VALUES = 16  # behind one option
ANSWERS = 16  # that one repetition of a decode test may take, where the model ends them early
TG_PROMPT = 8  # tokens of the prompt before a decode test: next to none


class Test(NamedTuple):
    """``pp512``: a prompt of 512 tokens; ``tg128``: 128 tokens of answer; ``ttft64``: the first token after 64."""

    kind: str
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.kind}{self.tokens}"

    @property
    def n_prompt(self) -> int:
        return 0 if self.kind == ANSWER else self.tokens

    @property
    def n_gen(self) -> int:
        return {ANSWER: self.tokens, FIRST: 1}.get(self.kind, 0)


class Plan(NamedTuple):
    tests: Sequence[Test]
    repetitions: int
    clients: Sequence[int]  # several at once, after the tests
    seconds: float  # that one answer may take

    @property
    def answer_tokens(self) -> int:
        """Of each answer to one of several clients."""
        return next((test.tokens for test in self.tests if test.kind == ANSWER), 128)

    def frame(self) -> dict[str, Any]:
        """As JSON, for another process; ``plan_of`` reads it."""
        tests = [list(test) for test in self.tests]
        return {**self._asdict(), "tests": tests, "clients": list(self.clients)}


def plan_of(frame: Mapping[str, Any]) -> Plan:
    tests = [Test(kind, tokens) for kind, tokens in frame["tests"]]
    return Plan(tests, frame["repetitions"], frame["clients"], frame["seconds"])


def make(prompts: str, answers: str, ttft: int, repetitions: int, clients: str, seconds: float) -> Plan:
    """From llama-bench's options: several numbers by commas, 0 for none; UsageError for what is no such number."""
    sizes = [
        *(Test(PROMPT, n) for n in numbers("-p", prompts, 0, MOST_TOKENS)),
        *(Test(ANSWER, n) for n in numbers("-n", answers, 0, MOST_TOKENS)),
        Test(FIRST, ttft),
    ]
    tests = [test for test in dict.fromkeys(sizes) if test.tokens]
    if any(test == Test(ANSWER, 1) for test in tests):
        raise UsageError("-n 1: there is no speed of one token, only between two: give 2 or more (or 0 for none)")
    at_once = numbers("--concurrency", clients, 1, MOST_CLIENTS) if clients else []
    if not tests and not at_once:
        raise UsageError("-p 0 -n 0 --ttft 0 leaves nothing to measure: give one of them a number")
    return Plan(tests, repetitions, at_once, seconds)


def numbers(option: str, text: str, least: int, most: int) -> list[int]:
    found = []
    for word in text.split(","):
        if not (word.strip().isascii() and word.strip().isdigit()) or not least <= int(word[:20]) <= most:
            raise UsageError(f"{option} {text[:60]!r}: expected whole numbers from {least} to {most}, by commas")
        found.append(int(word))
    if len(found) > MOST_VALUES:
        raise UsageError(f"{option}: {len(found)} values are too many: give {MOST_VALUES} at the most")
    return list(dict.fromkeys(found))
