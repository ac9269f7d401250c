"""llama.cpp's side of the bench, a process of its own: `python twin_llama.py MODEL THREADS`.

Runs in the bench venv, which has llama-cpp-python and nothing of ours. Prints one JSON line with the build's flags,
then for every line `PROMPT NEW` on stdin one with the seconds of a prefill and of each decode step.
`python twin_llama.py --quantise SOURCE TARGET` writes SOURCE as Q8_0.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp as llama


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _quiet(_level: int, _text: bytes, _data: object) -> None:
    pass


class Engine:
    """A model and a context on `threads` threads, everything else as llama.cpp sets it."""

    def __init__(self, path: str, threads: int) -> None:
        parameters = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(path.encode(), parameters)
        assert self.model, f"llama.cpp cannot load {path}"
        options = llama.llama_context_default_params()
        options.n_ctx = 512
        options.n_threads = options.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, options)
        self.batch = llama.llama_batch_init(512, 0, 1)

    def decode(self, tokens: list[int], start: int) -> None:
        """One llama_decode at positions from `start`; logits of the last token, and they are waited for."""
        batch: Any = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == len(tokens) - 1
        assert llama.llama_decode(self.context, batch) == 0
        llama.llama_synchronize(self.context)

    def measure(self, prompt: list[int], new: int) -> dict[str, object]:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        started = time.perf_counter()
        self.decode(prompt, 0)
        prefill = time.perf_counter() - started
        steps = []
        for i in range(new):
            started = time.perf_counter()
            self.decode([prompt[i % len(prompt)]], len(prompt) + i)
            steps.append(time.perf_counter() - started)
        return {"prefill": prefill, "steps": steps}


def quantise(source: str, target: str) -> None:
    options = llama.llama_model_quantize_default_params()
    options.ftype = llama.LLAMA_FTYPE_MOSTLY_Q8_0
    options.nthread = 2
    options.allow_requantize = True  # the published file is Q4_1: its weights as float32 are what both sides start from
    assert llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)) == 0


def main(arguments: list[str]) -> None:
    llama.llama_log_set(_quiet, None)
    if arguments[0] == "--quantise":
        quantise(*arguments[1:])
        return
    engine = Engine(arguments[0], int(arguments[1]))
    about = f"llama-cpp-python {llama.__version__}: {llama.llama_print_system_info().decode().strip(' |')}"
    print(json.dumps({"about": about}), flush=True)
    for line in sys.stdin:
        prompt, new = json.loads(line)
        print(json.dumps(engine.measure(prompt, new)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
