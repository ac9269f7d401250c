"""What a measurement tells while it goes on, as plain objects that also go through a pipe or over SSH as JSON lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

Emit = Callable[[dict[str, Any]], None]


def about(**facts: Any) -> dict[str, Any]:
    """Facts of model and server; what is not known is left out."""
    return {"about": {name: value for name, value in facts.items() if value is not None}}


def sample(
    test: str, ns: int, rate: float, prompt_tokens: int, tokens: int, answers: int = 1, told_ns: Optional[int] = None
) -> dict[str, Any]:
    """One repetition: the time it took, tokens per second, the tokens there really were, and in how many answers."""
    found = {"test": test, "ns": ns, "rate": rate, "prompt_tokens": prompt_tokens, "tokens": tokens, "answers": answers}
    return {"sample": {**found, **({} if told_ns is None else {"told_ns": told_ns})}}


def note(text: str) -> dict[str, Any]:
    return {"note": text}


def progress(text: str) -> dict[str, Any]:
    return {"progress": text}


def readings(when: str, facts: dict[str, Any]) -> dict[str, Any]:
    """``when``: before or after. Clocks, temperatures and the like, as the daemon's /stats has them."""
    return {"readings": {"when": when, **facts}}


def clients(facts: dict[str, Any]) -> dict[str, Any]:
    """What came of several clients at once."""
    return {"clients": facts}


def failed(error: Exception, code: int) -> dict[str, Any]:
    return {"failed": {"message": str(error), "code": code}}
