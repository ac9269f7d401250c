"""The simulated runtime's side of the bench, a process of its own: `python twin_ours.py MODEL THREADS`.

Speaks to librkllmrt.so through the ten functions, as any program would. Prints one JSON line that says what runs,
then for every line `PROMPT NEW` on stdin one with the seconds of a prefill and of each decode step.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time

from rk3588 import hostlib, runtime
from rkruntime import abi_1_1 as abi
from rkruntime import abi_common, loader


class Engine:
    """A handle, and a callback that notes when each token came."""

    def __init__(self, path: str, new: int) -> None:
        self.library = loader.load(runtime.find()).library
        parameters = self.library.rkllm_createDefaultParam()
        parameters.model_path = os.fsencode(path)
        parameters.max_context_len, parameters.max_new_tokens = 512, new + 1
        parameters.top_k, parameters.repeat_penalty = 1, 1.0
        self.times: list[float] = []
        self.callback = abi.LLMResultCallback(self._called)
        self.handle = abi_common.LLMHandle()
        self.library.rkllm_init(ctypes.byref(self.handle), ctypes.byref(parameters), self.callback)

    def _called(self, _result: object, _userdata: object, state: int) -> int:
        if state in (abi.LLMCallState.RKLLM_RUN_NORMAL, abi.LLMCallState.RKLLM_RUN_WAITING):
            self.times.append(time.perf_counter())
        return 0

    def measure(self, prompt: list[int]) -> dict[str, object]:
        """The first callback ends the prefill, each further one a decode step."""
        ids = (ctypes.c_int32 * len(prompt))(*prompt)
        given = abi.RKLLMInput(input_type=abi_common.RKLLMInputType.RKLLM_INPUT_TOKEN)
        given.token_input = abi_common.RKLLMTokenInput(ids, len(prompt))
        self.times.clear()
        started = time.perf_counter()
        self.library.rkllm_run(self.handle, ctypes.byref(given), ctypes.byref(abi.RKLLMInferParam()), None)
        if len(self.times) < 2:
            raise SystemExit("Error: the model ended its answer at once: nothing to measure")
        steps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return {"prefill": self.times[0] - started, "steps": steps}


def main(path: str, threads: str) -> None:
    os.environ["RKSIM_THREADS"] = threads
    sys.stdout.flush()
    engine: Engine | None = None
    print(json.dumps({"about": f"simulated runtime {hostlib.kernel()}"}), flush=True)
    for line in sys.stdin:
        prompt, new = json.loads(line)
        engine = engine or Engine(path, new)
        print(json.dumps(engine.measure(prompt)), flush=True)
    if engine:
        engine.library.rkllm_destroy(engine.handle)


if __name__ == "__main__":
    main(*sys.argv[1:])
