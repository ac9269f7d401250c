"""What ``rk3588 predict`` says of each test, to stand beside what was measured."""

from __future__ import annotations

from typing import Any, Optional

from rk3588 import predict
from rk3588.boards import BoardType, catalogue
from rk3588.errors import RkError
from rk3588.predict import PREDICTED, Estimate, Workload
from rk3588.rkllm import CONTEXT_RESERVE, MAX_CONTEXT
from rk3588.shape import Shape

from .plan import ANSWER, FIRST, TG_PROMPT, Plan

REFERENCE = "rock-5b"  # the board that figures are known best of, for what ran on none that is known


def of_tests(
    sizes: Shape, dtype: str, plan: Plan, board: Optional[BoardType], context: int = MAX_CONTEXT
) -> Optional[dict[str, Any]]:
    """For ``about``: by test, tokens per second, of ``ttft`` ms. None for a dtype that no board runs."""
    if dtype not in PREDICTED:
        return None
    there = board or catalogue().boards[REFERENCE]
    tests = {}
    try:
        for test in plan.tests:
            prompt, answer = (TG_PROMPT, test.tokens) if test.kind == ANSWER else (test.tokens, 1)
            work = Workload(prompt=prompt, answer=answer, context=max(context, prompt + CONTEXT_RESERVE))
            found = predict.predict(sizes, dtype, work.on(there), there.soc)
            of_kind = {ANSWER: found.decode_tok_s, FIRST: found.ttft_ms}
            tests[test.name] = _interval(of_kind.get(test.kind, found.prefill_tok_s))
    except RkError:
        return None
    return {"board": there.name, "is_this_board": board is not None, "tests": tests}


def _interval(of: Estimate) -> dict[str, float]:
    return {"value": of.value, "low": of.low, "high": of.high}
