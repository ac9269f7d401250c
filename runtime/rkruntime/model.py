"""A bundle, loaded and ready to answer: the library, the prompts, the limits, and what an answer cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Optional

from rk3588 import bundle as bundles
from rk3588 import lora
from rk3588.bundle import Bundle
from rk3588.errors import BundleError, UsageError

from .binding import CONTEXT_RESERVE, RKLLM
from .generation import FINISH, Token
from .prompts import Prompt, Prompts

BOARD_CONTEXT = 4096  # tokens an RK3588 can use under 1.1; answers degrade above


@dataclass(frozen=True)
class Settings:
    """What a user may choose. None: the library's default."""

    context: int = 0  # 0: the model's
    beyond_board: bool = False
    max_tokens: int = -1  # -1: until the answer ends or the context is full
    temperature: Optional[float] = None  # 0: greedy
    top_k: Optional[int] = None
    top_p: Optional[float] = None
    repeat_penalty: Optional[float] = None
    library: Optional[Path] = None
    lora: Optional[str] = None  # as Model.choose_lora takes it


@dataclass
class Cost:
    """Times of one answer, on this machine. Seconds are from the start of the run."""

    prompt_tokens: Optional[int] = None  # None: sent as text, and so not counted
    tokens: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    finish_reason: str = "stop"  # or length, or abort

    @property
    def prefill_tokens_per_s(self) -> Optional[float]:
        return self.prompt_tokens / self.first_s if self.prompt_tokens and self.first_s else None

    @property
    def decode_tokens_per_s(self) -> Optional[float]:
        span = self.last_s - self.first_s
        return (self.tokens - 1) / span if self.tokens > 1 and span > 0 else None

    def facts(self) -> dict[str, object]:
        """For JSON; what was not measured is absent."""
        found = {
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "ttft_ms": round(self.first_s * 1e3, 2) if self.tokens else None,
            "prefill_tokens_per_s": _rounded(self.prefill_tokens_per_s),
            "decode_tokens_per_s": _rounded(self.decode_tokens_per_s),
        }
        return {key: value for key, value in found.items() if value is not None}

    def __str__(self) -> str:
        """One line for people."""
        prefill, decode = self.prefill_tokens_per_s, self.decode_tokens_per_s
        parts = [
            f"prompt {self.prompt_tokens} tokens" if self.prompt_tokens else "",
            f"first token after {self.first_s * 1e3:.0f} ms" if self.tokens else "",
            f"prefill {prefill:.1f} tok/s" if prefill else "",
            f"answer {self.tokens} tokens",
            f"decode {decode:.1f} tok/s" if decode else "",
        ]
        return ", ".join(part for part in parts if part)


def _rounded(value: Optional[float]) -> Optional[float]:
    return None if value is None else round(value, 2)


class Model:
    """A loaded bundle; a context manager. ``warn`` is told what was not done as asked."""

    def __init__(self, path: Path, settings: Settings, warn: Callable[[str], None]) -> None:
        self.bundle = bundles.read(path)
        artifact = _artifact(self.bundle)
        self.prompts = Prompts(self.bundle)
        self.max_tokens = settings.max_tokens
        self.cost = Cost()
        self.lora: Optional[str] = None  # what answers are given with; None: the model alone
        try:
            self.context = _context(settings, self.prompts.context, warn)
            self.llm = _load(artifact, self.context, settings)
        except BaseException:
            self.prompts.__exit__(None, None, None)
            raise
        try:
            self.choose_lora(settings.lora)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            self.llm.close()
        finally:
            self.prompts.__exit__(kind, value, trace)

    def choose_lora(self, text: Optional[str]) -> None:
        """Answer with an adapter from now on: ``FILE[:NAME[:SCALE]]``, or with a name of the bundle's own for FILE.

        It is loaded the first time. None: the model alone.
        """
        if text is None or text in self.llm.loras:
            self.lora = text
            return
        path, name, scale = self._find_lora(text)
        self.llm.load_lora(path, name, scale)
        self.lora = name

    def _find_lora(self, text: str) -> tuple[Path, str, float]:
        own = self.bundle.loras
        # os.path's isfile raises for no text, unlike Path's.
        wanted = lora.parse(text, lambda what: what in own or os.path.isfile(what))  # noqa: PTH113
        if wanted is None:
            there = ", ".join(own) or "none"
            raise UsageError(f"there is no LoRA file {text.split(':')[0]}, and those of this bundle are: {there}")
        path, name, scale = Path(wanted.what), Path(wanted.what).stem, 1.0
        if wanted.what in own:
            adapter = own[wanted.what]
            name, scale = adapter.name, adapter.scale
            found = adapter.sim if self.bundle.sim_model else adapter.npu
            if found is None:
                raise BundleError(
                    f"{self.bundle.path} has no file of the LoRA {name} for this runtime: convert it again"
                )
            path = found
        name = wanted.name or lora.checked_name(name, text)
        return path, name, scale if wanted.scale is None else wanted.scale

    def answer(self, prompt: Prompt) -> Generator[str, None, None]:
        """Texts as they come; ``cost`` is this answer's. The run has ended when the iteration has."""
        with closing(self.tokens(prompt)) as tokens:
            for token in tokens:
                if token.text:
                    yield token.text

    def tokens(self, prompt: Prompt, max_tokens: Optional[int] = None) -> Generator[Token, None, None]:
        """Tokens as they come, at most ``max_tokens`` and what the settings allow; ``cost`` is this answer's."""
        cost = self.cost = Cost(prompt_tokens=None if isinstance(prompt, str) else len(prompt))
        room = self.context - len(prompt) if not isinstance(prompt, str) and self.context else None
        limit = min((n for n in (room, self.max_tokens, max_tokens) if n is not None and n >= 0), default=None)
        start = time.perf_counter()
        cost.finish_reason = "abort"
        with closing(self.llm.generate(prompt, limit, self.lora)) as tokens:
            for token in tokens:
                if token.state != FINISH:
                    cost.tokens += 1
                    cost.last_s = time.perf_counter() - start
                    cost.first_s = cost.first_s or cost.last_s
                yield token
        cost.finish_reason = "length" if cost.tokens == limit else "stop"

    def too_long(self, prompt: Prompt) -> bool:
        """Whether the library would refuse this prompt for its length, as far as that can be counted."""
        return not isinstance(prompt, str) and len(prompt) > self.context - CONTEXT_RESERVE


def _artifact(bundle: Bundle) -> Path:
    artifact = bundle.sim_model or bundle.npu_model
    if artifact is None:
        raise BundleError(f"{bundle.path} has no model that librkllmrt could load: convert it again")
    return artifact


def _load(artifact: Path, context: int, settings: Settings) -> RKLLM:
    return RKLLM(
        artifact,
        library=settings.library,
        max_context_len=context,
        max_new_tokens=settings.max_tokens,
        top_k=1 if settings.temperature == 0 else settings.top_k,
        top_p=settings.top_p,
        temperature=settings.temperature or None,
        repeat_penalty=settings.repeat_penalty,
    )


def _context(settings: Settings, of_model: Optional[int], warn: Callable[[str], None]) -> int:
    wanted = settings.context or of_model or BOARD_CONTEXT
    if wanted <= CONTEXT_RESERVE:
        raise UsageError(f"a context of {wanted} tokens holds no prompt: ask for more than {CONTEXT_RESERVE}")
    if wanted <= BOARD_CONTEXT or settings.beyond_board:
        return wanted
    if settings.context:
        warn(f"the context is cut to {BOARD_CONTEXT} tokens, all that an RK3588 can use (--beyond-board lifts this)")
    return BOARD_CONTEXT
