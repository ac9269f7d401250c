"""What a server of OpenAI's API does: its tests one after the other, then several clients at once."""

from __future__ import annotations

import statistics
from typing import Any, Optional

from rk3588.errors import BenchError, printable

from . import clients, events
from .completions import Answer, Refused, Server
from .counting import Counter
from .events import Emit
from .plan import ANSWER, ANSWERS, FIRST, TG_PROMPT, TTFT_TOKENS, Plan, Test

_WARM_UP = (64, 8)  # words of the prompt, tokens of the answer
_TRIES = 3  # to get a prompt of which nothing is cached
_OFF = 16  # tokens by which two counts may differ
_LONGEST = 200  # characters of a name


def measure(server: Server, model: Optional[str], plan: Plan, emit: Emit) -> None:
    """Tell all there is to know; BenchError where the server cannot be measured."""
    model = model or _first_model(server)
    stats = _stats(server)
    emit(events.about(server=server.url, **facts_of(model, stats)))
    if stats.get("queued") or stats.get("running"):
        emit(events.note("somebody else is being answered there: these are the figures of a busy server"))
    if "now" in stats:
        emit(events.readings("before", stats["now"]))
    tests = _Tests(server, model, plan, emit)
    tests.warm_up()
    for test in plan.tests:
        for number in range(plan.repetitions):
            emit(events.progress(f"{test.name}, {number + 1} of {plan.repetitions}"))
            emit(tests.run(test))
    if plan.clients:
        lone = tests.lone_ns()
        for count in plan.clients:
            emit(events.progress(f"{count} client{'s' * (count > 1)} at once"))
            emit(events.clients(clients.together(tests.ask, tests.counter, plan, count, lone)))
    later = _stats(server)
    if "now" in later:
        emit(events.readings("after", later["now"]))
    _tell_resident(later, emit)


class _Tests:
    def __init__(self, server: Server, model: Optional[str], plan: Plan, emit: Emit) -> None:
        self._server, self._model, self._plan, self._emit = server, model, plan, emit
        self.counter = Counter(server, model)
        self._first: list[int] = []  # of prompts of TTFT_TOKENS
        self._told: set[str] = set()

    def warm_up(self) -> None:
        """An answer that is thrown away, but for how many tokens its prompt had."""
        self._emit(events.progress("warming up"))
        words, most = _WARM_UP
        text = self.counter.prompt(words)
        found = self.ask(text, most)
        self.counter.learn(found, len(text.split()))
        if found.prompt_tokens is None and not self.counter.exact:
            raise BenchError(
                f"{self._server.url} tells neither usage nor /tokenize how many tokens a prompt has: its speed cannot "
                "be measured"
            )
        if found.tokens is None:
            self._note("tokens of answers are not told by this server: pieces of its streams were counted")

    def ask(self, prompt: str, most: int) -> Answer:
        return self._server.complete(self._model, prompt, most)

    def run(self, test: Test) -> dict[str, Any]:
        """One repetition."""
        return self._decode(test) if test.kind == ANSWER else self._prefill(test)

    def lone_ns(self) -> float:
        """Until the first token of a client that is alone, for a prompt as those of several clients."""
        while len(self._first) < 3:
            self._prefill(Test(FIRST, TTFT_TOKENS))
        return statistics.median(self._first)

    def _prefill(self, test: Test) -> dict[str, Any]:
        for _ in range(_TRIES):
            found = self.ask(self.counter.prompt(test.tokens), 1)
            if not found.cached_tokens:
                break
        else:
            raise BenchError(
                f"{self._server.url} took {found.cached_tokens} tokens of a prompt that nobody had sent before from a "
                "cache, so its prefill cannot be measured: switch its prompt cache off"
            )
        if found.cached_tokens is None:
            self._note("cached_tokens: not told by this server; every prompt was a new one")
        tokens = found.prompt_tokens
        if tokens is None:
            tokens = self.counter.expected or test.tokens
            self._note("prompt_tokens: not told by this server; /tokenize counted them")
        expected = self.counter.expected
        if expected is not None and abs(tokens - expected) > max(_OFF, expected // 10):
            raise BenchError(
                f"{self._server.url} says usage.prompt_tokens {tokens}, and its /tokenize {expected}: it cannot be so"
            )
        if not tokens:
            raise BenchError(f"{self._server.url} says that a prompt of {test.tokens} tokens had none")
        if test.tokens == TTFT_TOKENS:
            self._first.append(found.first_ns)
        rate = tokens * 1e9 / found.first_ns
        return events.sample(test.name, found.first_ns, rate, tokens, found.tokens or 0, told_ns=found.prefill_ns)

    def _decode(self, test: Test) -> dict[str, Any]:
        """Answers until there are as many tokens, for nothing keeps every model from ending one early."""
        done, between, ns, answers, prompt_tokens = 0, 0, 0, 0, 0
        while done < test.tokens and answers < ANSWERS:
            found = self.ask(self.counter.prompt(TG_PROMPT), max(test.tokens - done, 2))
            tokens = found.pieces if found.tokens is None else found.tokens
            answers, prompt_tokens = answers + 1, max(prompt_tokens, found.prompt_tokens or 0)
            self._emit(events.progress(f"{test.name}, answer {answers}"))
            if 2 * found.pieces < tokens:
                self._note("streams came in pieces of several tokens: the speed of answers is that of the pieces")
            if found.pieces > found.burst:  # else all came at once, and tells nothing
                done, between = done + tokens, between + tokens - found.burst
                ns += found.last_ns - found.burst_ns
        if between < 1 or ns < 1:
            raise BenchError(
                f"{self._server.url} sent each of {answers} answers in one piece, or ended it at once: there is no "
                "time between tokens to measure"
            )
        return events.sample(test.name, ns, between * 1e9 / ns, prompt_tokens, done, answers)

    def _note(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._emit(events.note(text))


def _first_model(server: Server) -> Optional[str]:
    """The first that the server lists; None where it lists none."""
    try:
        said = server.get("/v1/models")
    except Refused as error:
        if error.status in (401, 403):
            raise
        return None
    rows = said.get("data") if isinstance(said, dict) else None
    names = [row.get("id") for row in rows or () if isinstance(row, dict)] if isinstance(rows, list) else []
    found = [name for name in names if isinstance(name, str) and 0 < len(name) <= _LONGEST]
    return found[0] if found else None


def _stats(server: Server) -> dict[str, Any]:
    """What our own daemon tells of itself; empty from any other server."""
    try:
        said = server.get("/stats")
    except BenchError:
        return {}
    sound = isinstance(said, dict) and all(isinstance(said.get(name), dict) for name in ("model", "runtime", "now"))
    return said if sound else {}


def facts_of(model: Optional[str], stats: dict[str, Any]) -> dict[str, Any]:
    """For the table: what /stats says of the model, or its name alone."""
    if not stats:
        # llama.cpp's calls it by its path.
        return {"model": printable(model.rpartition("/")[2] if model.startswith("/") else model) if model else None}
    said, runtime, board = stats["model"], stats["runtime"], stats.get("board")
    kind = "RKLLM simulated" if runtime.get("simulated") else "RKLLM NPU"
    return {
        "model": f"{said.get('name')} {said.get('dtype')}", "file": said.get("file"), "bytes": said.get("bytes"),
        "params": said.get("params"), "backend": f"{kind} {runtime.get('version') or ''}".strip(),
        "simulated": runtime.get("simulated"), "board": board.get("name") if isinstance(board, dict) else None,
        "predicted": stats.get("predicted"),
    }  # fmt: skip


def _tell_resident(stats: dict[str, Any], emit: Emit) -> None:
    now = stats.get("now")
    resident = now.get("resident") if isinstance(now, dict) else None
    worker = resident.get("worker") if isinstance(resident, dict) else None
    if isinstance(worker, int):
        emit(events.about(resident=worker))
