"""Every language that clients speak: where each takes requests, and which one hears of an error at which path."""

from __future__ import annotations

from collections.abc import Callable

from rk3588.errors import RkError

from . import anthropic, ollama, openai, responses
from .dialect import Endpoint, Failure

ENDPOINTS: tuple[Endpoint, ...] = (*openai.ENDPOINTS, *responses.ENDPOINTS, *anthropic.ENDPOINTS, *ollama.ENDPOINTS)
_OLLAMA = "/api/"


def failure_at(path: str) -> Callable[[RkError], Failure]:
    """How an error is told to who asked for ``path``."""
    if path == anthropic.PATH or path.startswith(f"{anthropic.PATH}/"):
        return anthropic.failure
    return ollama.failure if path.startswith(_OLLAMA) else openai.failure
