"""A bundle, loaded and ready to answer: the library, the prompts, the limits, and what an answer cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Optional

from rk3588 import bundle as bundles
from rk3588 import lora, runtime
from rk3588.bundle import Lora
from rk3588.errors import BundleError, RkError, UsageError
from rk3588.rkllm import CONTEXT_RESERVE, MAX_BUILT_CONTEXT, MAX_CONTEXT
from rk3588.runtime import Choice
from rk3588.sampling import Sampling
from rk3588.templates import Source

from . import loader
from .abi import HiddenStates, Perf
from .binding import RKLLM
from .generation import FINISH, NORMAL, Generation, Token
from .loops import LoopDetector
from .prompts import Prompt, Prompts
from .settings import Settings as Settings
from .settings import check_context


@dataclass
class Cost:
    """Times of one answer, on this machine, from the start of the run."""

    prompt_tokens: Optional[int] = None  # None: sent as text, and so not counted
    tokens: int = 0
    first_ns: int = 0  # to the first token
    last_ns: int = 0  # to the latest
    finish_reason: str = "stop"  # or length, or abort
    cut_by: str = ""  # of an answer that ended by its length: max_tokens, context, or loop
    perf: Optional[Perf] = None  # the runtime's own figures, where it gives any
    end_given: bool = False  # the library gave the token that ended the answer, which is not counted

    @property
    def prefill_tokens_per_s(self) -> Optional[float]:
        return self.prompt_tokens * 1e9 / self.first_ns if self.prompt_tokens and self.first_ns else None

    @property
    def decode_tokens_per_s(self) -> Optional[float]:
        span = self.last_ns - self.first_ns
        return (self.tokens - 1) * 1e9 / span if self.tokens > 1 and span > 0 else None

    def facts(self) -> dict[str, object]:
        """For JSON; what was not measured is absent."""
        found = {
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "ttft_ms": round(self.first_ns / 1e6, 2) if self.tokens else None,
            "prefill_tokens_per_s": _rounded(self.prefill_tokens_per_s),
            "decode_tokens_per_s": _rounded(self.decode_tokens_per_s),
            "perf": self.perf.facts() if self.perf else None,
        }
        return {key: value for key, value in found.items() if value is not None}

    def __str__(self) -> str:
        """One line for people."""
        prefill, decode = self.prefill_tokens_per_s, self.decode_tokens_per_s
        parts = [
            f"prompt {self.prompt_tokens} tokens" if self.prompt_tokens else "",
            f"first token after {self.first_ns / 1e6:.0f} ms" if self.tokens else "",
            f"prefill {prefill:.1f} tok/s" if prefill else "",
            f"answer {self.tokens} tokens",
            f"decode {decode:.1f} tok/s" if decode else "",
        ]
        return ", ".join(part for part in parts if part)


def _rounded(value: Optional[float]) -> Optional[float]:
    return None if value is None else round(value, 2)


class _Adapter(NamedTuple):
    """A LoRA that was loaded, to be loaded again."""

    path: Path
    scale: float


class Model:
    """A loaded bundle; a context manager. ``warn`` is told what was not done as asked, ``announce``, before anything is
    loaded, which library runs which model."""

    def __init__(
        self,
        path: Path,
        settings: Settings,
        warn: Callable[[str], None],
        announce: Callable[[Choice], None] = lambda _: None,
    ) -> None:
        self.bundle = bundles.read(path)
        self.choice = runtime.choose(self.bundle, settings.library)
        announce(self.choice)
        self.features = loader.features_of(self.choice.library)
        self._warn = warn
        self.cost = Cost()
        self.lora: Optional[str] = None  # what answers are given with; None: the model alone
        self._adapters: dict[str, _Adapter] = {}
        # What was given and is not there, or is none, is told before minutes of loading.
        if settings.lora is not None:
            self._find_lora(settings.lora)
        if settings.template:
            Source.of(self.bundle, settings.template)
        self.prompts = Prompts(
            self.bundle,
            settings.template,
            variables=settings.template_variables,
            system_role=settings.system_role,
            warn=warn,
        )
        try:
            self._load(settings)
        except BaseException:
            self.prompts.__exit__(None, None, None)
            raise
        try:
            self.choose_lora(settings.lora)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _load(self, settings: Settings) -> None:
        self.context = self._context(settings, self._warn)
        # Cut to what is used, so that the next load says nothing of it again.
        self.settings = replace(settings, context=min(settings.context, self.context))
        self._max_new_tokens = settings.max_tokens
        self.sampling = settings.sampling(self.bundle.sampling)
        start = time.perf_counter_ns()
        self.llm = RKLLM(
            self.choice.model,
            library=self.choice.library,
            max_context_len=self.context,
            max_new_tokens=settings.max_tokens,
            **self.sampling.parameters(),
        )
        self.load_ns = time.perf_counter_ns() - start

    def change(self, settings: Settings, again: bool = False) -> bool:
        """Answer with other settings from now on; whether the model had to be loaded again, since the library fixes
        the context when it loads one, and most releases sampling, too. When that fails, the model is as it was.
        ``again``: load it anyway."""
        context = self._context(settings, lambda _: None)
        now = self.settings
        free = replace(settings, max_tokens=now.max_tokens, loop_limit=now.loop_limit, context=now.context)
        if self.features.per_run_sampling:
            free = replace(free, **{name: getattr(now, name) for name in Sampling._fields})
        most, as_it_is = self._max_new_tokens, free == now and context == self.context
        if not again and as_it_is and (most < 0 or 0 < settings.max_tokens <= most):
            if settings.context > context:
                self._context(settings, self._warn)
            self.settings = replace(settings, context=min(settings.context, context))
            self.sampling = settings.sampling(self.bundle.sampling)
            return False
        before, adapters = self.settings, self._adapters
        self.llm.close()
        try:
            self._load(settings)
        except BaseException:
            self._load(before)
            self._load_again(adapters)
            raise
        self._load_again(adapters)
        return True

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            self.llm.close()
        finally:
            self.prompts.__exit__(kind, value, trace)

    @property
    def most_context(self) -> int:
        """Tokens of context that the library and an RK3588 can use, unless the settings go beyond."""
        if not self.features.max_context:
            return MAX_CONTEXT
        return min(self._built_context or MAX_BUILT_CONTEXT, MAX_BUILT_CONTEXT)

    @property
    def _built_context(self) -> Optional[int]:
        """Tokens above which a library of 1.2 or later does not load the model, as far as that is known. The simulated
        one takes what it was trained for."""
        if not self.features.max_context:
            return None
        return self._trained_context if self.choice.simulated else runtime.built_context(self.bundle)

    @property
    def _trained_context(self) -> Optional[int]:
        return self.bundle.context_length or self.prompts.context

    def _context(self, settings: Settings, warn: Callable[[str], None]) -> int:
        """Tokens to load with: what is asked for, else the model's own, at most what can be used."""
        of_model, built = self._trained_context, self._built_context
        wanted = settings.context or min(of_model or MAX_CONTEXT, built or of_model or MAX_CONTEXT)
        check_context(wanted)
        most = self.most_context if settings.context else MAX_CONTEXT
        used = wanted if settings.beyond_board else min(wanted, most)
        if settings.context and used < wanted:
            what = "the model was built for" if most == built else "an RK3588 can use"
            warn(f"the context is cut to {used} tokens, all that {what} (--beyond-board lifts this)")
        if settings.context and of_model and used > of_model:
            warn(f"the model was trained for {of_model} tokens of context: beyond them its answers are worth little")
        return used

    @property
    def own_loras(self) -> dict[str, Lora]:
        """The bundle's adapters that this runtime can load."""
        return runtime.loras_for(self.bundle, self.choice.kind)

    def choose_lora(self, text: Optional[str]) -> None:
        """Answer with an adapter from now on: ``FILE[:NAME[:SCALE]]``, or with a name of the bundle's own for FILE.

        It is loaded the first time. None: the model alone.
        """
        if text is None or text in self.llm.loras:
            self.lora = text
            return
        path, name, scale = self._find_lora(text)
        self._load_lora(name, _Adapter(path, scale))
        self.lora = name

    def _load_lora(self, name: str, adapter: _Adapter) -> None:
        self.llm.load_lora(adapter.path, name, adapter.scale)
        self._adapters[name] = adapter

    def _load_again(self, adapters: dict[str, _Adapter]) -> None:
        """What a model that was loaded anew had before. One whose file is gone by now is dropped, and it is said."""
        self._adapters = {}
        for name, adapter in adapters.items():
            try:
                self._load_lora(name, adapter)
            except RkError as error:
                self.lora = None if self.lora == name else self.lora
                self._warn(f"{error}; from now on without the LoRA {name!r}")

    def _find_lora(self, text: str) -> tuple[Path, str, float]:
        own = self.bundle.loras
        # os.path's isfile raises for no text, unlike Path's.
        wanted = lora.parse(text, lambda what: what in own or os.path.isfile(what))  # noqa: PTH113
        if wanted is None:
            there = ", ".join(self.own_loras) or "none"
            raise UsageError(f"there is no LoRA file {text.split(':')[0]}, and those of this bundle are: {there}")
        path, name, scale = Path(wanted.what), Path(wanted.what).stem, 1.0
        if wanted.what in own:
            adapter = own[wanted.what]
            name, scale = adapter.name, adapter.scale
            found = runtime.adapter_for(adapter, self.choice.kind)
            if found is None:
                raise BundleError(
                    f"{self.bundle.path} has no file of the LoRA {name} for {self.choice.library}: convert it again"
                )
            path = found
        name = wanted.name or lora.checked_name(name, text)
        return path, name, scale if wanted.scale is None else wanted.scale

    def answer(self, prompt: Prompt, marks: Sequence[str] = ()) -> Generator[str, None, None]:
        """Texts as they come; ``cost`` is this answer's. The run has ended when the iteration has.

        ``marks``: special tokens by their texts, of which the library gives the id alone, to be given out all the same.
        """
        shown = self.prompts.special_ids(marks)
        with closing(self.tokens(prompt)) as tokens:
            for token in tokens:
                text = token.text or (shown.get(token.id, "") if token.state != FINISH else "")
                if text:
                    yield text

    def tokens(
        self, prompt: Prompt, max_tokens: Optional[int] = None, sampling: Optional[Mapping[str, float]] = None
    ) -> Generator[Token, None, None]:
        """Tokens as they come, at most ``max_tokens`` and what the settings allow, until they are a loop; ``cost`` is
        this answer's. ``sampling`` is for this answer; UsageError where the library fixes it when it loads a model."""
        cost = self.cost = Cost(prompt_tokens=None if isinstance(prompt, str) else len(prompt))
        if self.too_long(prompt):
            longer = self.settings.longer_than(self.context, self.most_context)
            raise UsageError(
                f"the prompt has {len(prompt)} tokens, and a context of {self.context} takes "
                f"{self.context - CONTEXT_RESERVE}: shorten it or ask for {longer}"
            )
        # A text is not counted; that it has a token at least keeps an answer that never ends from going on for ever.
        room = self.context - (1 if isinstance(prompt, str) else len(prompt))
        asked = [n for n in (self.settings.max_tokens, max_tokens) if n is not None and n >= 0]
        limit = min(room, *asked) if asked else room
        loop_limit = self.settings.loop_limit
        loops = LoopDetector(loop_limit) if loop_limit else None
        cost.finish_reason = "abort"
        of_run = self.sampling.for_run(sampling or {}) if self.features.per_run_sampling else sampling
        with closing(self.llm.generate(prompt, limit, self.lora, of_run)) as tokens:
            for token in self._of_answer(tokens, cost, limit):
                if token.state != FINISH:
                    cost.tokens += 1
                    cost.last_ns = tokens.elapsed_ns
                    cost.first_ns = cost.first_ns or cost.last_ns
                yield token
                if loops is not None and token.state != FINISH and loops.is_loop(token.id):
                    cost.cut_by = "loop"
                    break  # which aborts the run
            ended = "abort" if tokens.aborted and not cost.end_given else "stop"
        cost.perf = tokens.perf
        if cost.tokens == limit:
            cost.cut_by = "context" if limit == room else "max_tokens"
        cost.finish_reason = "length" if cost.cut_by else ended

    def hidden_states(self, prompt: Prompt) -> HiddenStates:
        """The last hidden layer of a prompt, with the adapter that was chosen."""
        return self.llm.hidden_states(prompt, self.lora)

    def _of_answer(self, tokens: Generation, cost: Cost, limit: int) -> Iterator[Token]:
        """All but the token that ends an answer, which releases from 1.2 on give as well, without a text."""
        held, number = None, 0
        for token in tokens:
            number += 1
            if held is not None:
                yield held
            held = token if self.features.end_token and token.state == NORMAL and not token.text else None
            if held is None:
                yield token
        if held is None:
            return
        # Of an answer that was cut off, what came last need not be its end.
        cost.end_given = (number < limit and not tokens.aborted) or held.id == self.prompts.end_id
        if not cost.end_given:
            yield held

    def too_long(self, prompt: Prompt) -> bool:
        """Whether the library would refuse this prompt for its length, as far as that can be counted."""
        return not isinstance(prompt, str) and len(prompt) > self.context - CONTEXT_RESERVE
