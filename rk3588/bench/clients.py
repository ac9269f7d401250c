"""Several clients of a server at once: tokens per second of all, and what each waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rk3588.errors import BenchError, RkError

from .completions import Answer
from .counting import Counter
from .plan import TTFT_TOKENS, Plan

_PERCENTS = (50, 90, 99)


class _Asked(NamedTuple):
    began_ns: int
    answer: Answer


def together(
    ask: Callable[[str, int], Answer], counter: Counter, plan: Plan, count: int, lone_ns: float
) -> dict[str, Any]:
    """``count`` clients, each with ``plan.repetitions`` requests one after the other. ``lone_ns``: what one alone waits
    for its first token."""
    prompts = [[counter.prompt(TTFT_TOKENS) for _ in range(plan.repetitions)] for _ in range(count)]
    found: list[_Asked] = []
    errors: list[Exception] = []
    ready = threading.Barrier(count)

    def client(mine: Sequence[str]) -> None:
        ready.wait()
        for prompt in mine:
            began = time.perf_counter_ns()
            try:
                found.append(_Asked(began, ask(prompt, plan.answer_tokens)))
            except RkError as error:
                errors.append(error)

    # Daemons: Ctrl-C ends the program, whoever still waits.
    threads = [threading.Thread(target=client, args=(mine,), daemon=True) for mine in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not found:
        raise BenchError(f"none of {count} clients got an answer: {errors[0]}") from errors[0]
    if any(each.answer.cached_tokens for each in found):
        raise BenchError("the server took tokens of new prompts from a cache: switch its prompt cache off")
    return _facts(found, errors, count, lone_ns)


def _facts(found: Sequence[_Asked], errors: Sequence[Exception], count: int, lone_ns: float) -> dict[str, Any]:
    span = max(a.began_ns + a.answer.last_ns for a in found) - min(a.began_ns for a in found)
    tokens = [a.answer.pieces if a.answer.tokens is None else a.answer.tokens for a in found]
    first = [a.answer.first_ns for a in found]
    prefill = [a.answer.prefill_ns for a in found]
    told = all(ns is not None for ns in prefill)
    waited = [max(0.0, ns - (own if own is not None else lone_ns)) for ns, own in zip(first, prefill)]
    return {
        "test": f"c{count}", "clients": count, "requests": len(found), "failed": len(errors),
        "why": str(errors[0]) if errors else "", "tokens": sum(tokens), "ns": span,
        "rate": sum(tokens) * 1e9 / max(span, 1), "ttft_ms": _percentiles(first), "queue_ms": _percentiles(waited),
        "queue_from": "server" if told else "lone",
    }  # fmt: skip


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """In ms, each a value there was: with few of them the highest are the same."""
    ordered = sorted(values)
    return {f"p{p}": ordered[min(len(ordered) - 1, -(-p * len(ordered) // 100) - 1)] / 1e6 for p in _PERCENTS}
