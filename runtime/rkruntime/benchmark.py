"""How fast a bundle answers over the library of this machine, without the daemon: in a process of its own, whose memory
is the model's, and whose end, as librkllmrt may bring it about, costs nothing that was measured before."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Optional

from rk3588 import boards, shape
from rk3588.bench import events, forecast, prompts
from rk3588.bench.events import Emit
from rk3588.bench.plan import ANSWER, ANSWERS, TG_PROMPT, Plan, Test, plan_of
from rk3588.bench.results import processor
from rk3588.errors import BenchError, RkError, UsageError
from rk3588.rkllm import CONTEXT_RESERVE, MAX_CONTEXT
from rkruntime.daemon import board
from rkruntime.model import Cost, Model
from rkruntime.prompts import Prompt
from rkruntime.settings import Settings

_WARM_UP = (64, 8)  # tokens of the prompt, and of the answer
_CACHED = 4  # tokens by which the library may count otherwise than we do


def measure(model: Model, plan: Plan, emit: Emit) -> None:
    """Tell all there is to know of a loaded model."""
    _check_room(model, plan)
    emit(events.about(**_facts(model, plan)))
    emit(events.readings("before", board.readings().facts()))
    emit(events.progress("warming up"))
    words, most = _WARM_UP
    _run(model, _prompt(model, words), most)
    for test in plan.tests:
        for number in range(plan.repetitions):
            emit(events.progress(f"{test.name}, {number + 1} of {plan.repetitions}"))
            emit(_decode(model, test, emit) if test.kind == ANSWER else _prefill(model, test))
        perf = model.cost.perf
        of_runtime = round(perf.memory_usage_mb * 1e6) if perf and perf.memory_usage_mb >= 1 else None
        emit(events.about(resident=_most_resident(), runtime_bytes=of_runtime))
    emit(events.readings("after", board.readings().facts()))


def _check_room(model: Model, plan: Plan) -> None:
    for test in plan.tests:
        needed = CONTEXT_RESERVE + (test.tokens + TG_PROMPT if test.kind == ANSWER else test.tokens)
        if needed > model.context:
            raise UsageError(
                f"{test.name} needs {needed} tokens of context, and there are {model.context}: ask for fewer (-p, -n, "
                "--ttft), or for a longer context (-c)"
            )


def _prompt(model: Model, tokens: int) -> Prompt:
    """A new one of so many tokens; a text of so many words where nobody can count them."""
    text = " ".join(prompts.words(tokens))
    found = model.prompts.plain(text)
    return found if isinstance(found, str) else found[:tokens]


def _run(model: Model, prompt: Prompt, most: int) -> Cost:
    with closing(model.tokens(prompt, most)) as tokens:
        for _ in tokens:
            pass
    return model.cost


def _prefill(model: Model, test: Test) -> dict[str, Any]:
    cost = _run(model, _prompt(model, test.tokens), 1)
    tokens = _prompt_tokens(cost)
    if not cost.first_ns:
        raise BenchError("the library gave no token, so there is no time to its first one")
    if cost.perf and cost.prompt_tokens and cost.perf.prefill_tokens < cost.prompt_tokens - _CACHED:
        raise BenchError(
            f"the library computed {cost.perf.prefill_tokens} tokens of a prompt of {cost.prompt_tokens} that nobody "
            "had given it before: it takes some from a cache, and its prefill cannot be measured"
        )
    return events.sample(test.name, cost.first_ns, tokens * 1e9 / cost.first_ns, tokens, cost.tokens)


def _decode(model: Model, test: Test, emit: Emit) -> dict[str, Any]:
    """Answers until there are as many tokens, for no release can be told to go on where a model ends."""
    between, ns, answers, tokens = 0, 0, 0, 0
    while between + answers < test.tokens and answers < ANSWERS:
        cost = _run(model, _prompt(model, TG_PROMPT), max(test.tokens - between - answers, 2))
        answers, tokens = answers + 1, max(tokens, cost.prompt_tokens or 0)
        emit(events.progress(f"{test.name}, answer {answers}"))
        if cost.tokens > 1:
            between, ns = between + cost.tokens - 1, ns + cost.last_ns - cost.first_ns
    if between < 1 or ns < 1:
        raise BenchError(f"the model ended {answers} answers at once: there is no decode to measure")
    return events.sample(test.name, ns, between * 1e9 / ns, tokens, between + answers, answers)


def _prompt_tokens(cost: Cost) -> int:
    found = cost.prompt_tokens or (cost.perf.prefill_tokens if cost.perf else 0)
    if not found:
        raise BenchError(
            "the bundle has no vocabulary, and this release of librkllmrt does not count either, so its prefill cannot "
            "be measured: convert it again, or give -p 0 --ttft 0"
        )
    return found


def _facts(model: Model, plan: Plan) -> dict[str, Any]:
    bundle, choice, found = model.bundle, model.choice, board.identify()
    kind = "RKLLM simulated" if choice.simulated else "RKLLM NPU"
    return {
        "model": f"{bundle.name} {bundle.dtype}", "file": choice.model.name, "bytes": choice.model.stat().st_size,
        "params": board.params(bundle), "backend": f"{kind} {model.llm.version}", "simulated": choice.simulated,
        "threads": _threads() if choice.simulated else None, "cpu": processor(), "board": found.name,
        "lora": model.lora, "context": model.context, "predicted": _predicted(model, plan, found.type),
    }  # fmt: skip


def _threads() -> int:
    """That the simulated runtime computes with."""
    said = os.environ.get("RKSIM_THREADS", "")
    return int(said) if said.isascii() and said.isdigit() else len(os.sched_getaffinity(0))


def _predicted(model: Model, plan: Plan, kind: Optional[str]) -> Optional[dict[str, Any]]:
    try:
        sizes = shape.load(model.bundle.path)
    except RkError:  # of a family whose shape is not known here, or an adopted file that does not say it
        return None
    there = boards.catalogue().boards[kind] if kind else None
    return forecast.of_tests(sizes, model.bundle.dtype, plan, there, min(MAX_CONTEXT, model.context))


def _most_resident() -> Optional[int]:
    """Bytes that this process had in memory at the most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) << 10 if found else None


def run(asked: Mapping[str, Any], emit: Emit) -> None:
    """What a frame of ``commands.bench`` asks for."""
    from rkruntime.commands import options

    library = asked["library"]
    # Greedy, and nothing ends an answer but its model and its length.
    settings = Settings(
        library=Path(library) if library else None, context=asked["context"], loop_limit=0, temperature=0.0,
        repeat_penalty=1.0, lora=asked["lora"],
    )  # fmt: skip
    with Model(Path(asked["bundle"]), settings, options.warn, options.announce) as model:
        measure(model, plan_of(asked["plan"]), emit)


def main() -> None:
    from rkruntime.commands import options

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options.answers_only()

    def emit(event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)

    try:
        run(json.loads(sys.argv[1]), emit)
    except RkError as error:
        emit(events.failed(error, error.exit_code))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever asked has gone
        os._exit(1)


if __name__ == "__main__":
    main()
