"""`make bench`: the simulated runtime beside llama.cpp, in one run: same model, same machine, same threads.

llama.cpp runs Q8_0, whose int8 blocks are the nearest it has to w8a8. Each engine is a process of its own and works
only when asked; the repetitions go round the engines in turn, so that a busy moment hits all of them. Ours is measured
through the C ABI: prefill is the time to the first callback, decode the time between callbacks, sampling included.
The share of memory is decode's speed times the bytes of the weights by what as many threads read from an array of
1 GiB, before the engines or after them: more than 100 % only where a cache holds part of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests import smollm2
from tests.bench.twin_models import MODELS

HERE = Path(__file__).resolve().parent
BUILD = smollm2.ROOT / "build"
LLAMA = "llama.cpp Q8_0"
PROMPT, NEW = 128, 64


@dataclass
class Engine:
    """One engine in its own process: writes what it is, then answers one line with one line."""

    name: str
    command: list[str]
    model: Path
    prefill: list[float] = field(default_factory=list)  # tokens a second
    decode: list[float] = field(default_factory=list)
    about: str = ""

    @property
    def weights(self) -> int:
        """Bytes that decoding a token reads: of the embedding one row where lm_head is another tensor, else all."""
        return sum(int(tensor.n_bytes) for tensor in tensors_of(self.model))

    def start(self, threads: int) -> None:
        # The engines are told their threads; this keeps a library's own idea of them from adding more.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [*self.command, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = self._answer()["about"]
        self.prefill, self.decode = [], []

    def measure(self, prompt: list[int], *, keep: bool = True) -> None:
        assert self.process.stdin
        time.sleep(0.05)  # the engine before this one may still spin, waiting for work
        self.process.stdin.write(json.dumps([prompt, NEW]) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if keep:
            self.prefill.append(len(prompt) / answer["prefill"])
            self.decode.append(len(answer["steps"]) / sum(answer["steps"]))

    def stop(self) -> None:
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"Error: {self.name} ended with exit code {self.process.wait()}; see above")
        return dict(json.loads(line))


def llama_engine(python: Path, name: str, source: Path) -> Engine:
    """Q8_0 of the same published weights, written once by llama.cpp itself."""
    target = BUILD / "cache" / f"{name}.Q8_0.gguf"
    script = str(HERE / "twin_llama.py")
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        subprocess.run([str(python), script, "--quantise", str(source), str(part)], check=True)
        part.rename(target)
    return Engine(LLAMA, [str(python), script, str(target)], target)


def our_engine(dtype: str, bundle: Path) -> Engine:
    model = bundle / "model.sim.gguf"
    command = [sys.executable, str(HERE / "twin_ours.py"), str(model)]
    return Engine(f"ours {dtype}", command, model)


def tensors_of(model: Path) -> list[gguf.ReaderTensor]:
    """Those that every decoded token reads whole."""
    tensors = gguf.GGUFReader(model).tensors
    untied = any(tensor.name == "output.weight" for tensor in tensors)
    return [tensor for tensor in tensors if not (untied and tensor.name == "token_embd.weight")]


def operations(engine: Engine) -> tuple[int, int]:
    """Multiplications and additions by weights for a decoded token, and for each of PROMPT tokens of a prompt, of which
    only the last goes through lm_head."""
    sizes = {t.name: 2 * int(t.n_elements) for t in tensors_of(engine.model) if t.name.endswith(".weight")}
    head = sizes["output.weight" if "output.weight" in sizes else "token_embd.weight"]
    every = sum(sizes.values())
    return every, every - head + head // PROMPT


def memory_speed(threads: int, size: int = 1 << 30, rounds: int = 25) -> float:
    """Bytes a second that so many threads read from an array: the best of so many rounds (memory_speed.c)."""
    return _printed("memory_speed", size, threads, rounds)


def int8_speed(seconds: float = 0.5) -> float:
    """Multiplications and additions of int8 a second of one core, from registers; 0: no such instruction."""
    return _printed("int8_speed", seconds)


def _printed(name: str, *arguments: float) -> float:
    """The number that a C program of this folder prints, compiled for this machine."""
    program = BUILD / "bench" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c11", "-O3", "-march=native", "-pthread"]
    subprocess.run(["cc", *flags, str(HERE / f"{name}.c"), "-o", str(program)], check=True)
    done = subprocess.run([str(program), *map(str, arguments)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure(engines: list[Engine], threads: int, repeat: int) -> None:
    prompt = [int(i) for i in np.random.default_rng(0).integers(1000, 20000, PROMPT)]
    for engine in engines:
        engine.start(threads)
    for round_ in range(repeat + 1):
        print(f"{threads} threads, round {round_} of {repeat}", file=sys.stderr, flush=True)
        for engine in engines:
            engine.measure(prompt, keep=round_ > 0)  # the first one warms caches and pages up
    for engine in engines:
        engine.stop()


def table(engines: list[Engine], threads: int, peak: float) -> str:
    title = f"{threads} thread{'s' * (threads > 1)}: {PROMPT} prompt tokens, {NEW} decoded, medians of "
    lines = [
        f"{title}{len(engines[0].decode)}; memory reads {peak / 1e9:.1f} GB/s",
        f"{'engine':<16} {'prefill tok/s':>13} {'ratio':>6} {'decode tok/s':>13} {'ratio':>6} {'of memory':>10}",
    ]
    base = engines[0]
    for engine in engines:
        prefill, decode = statistics.median(engine.prefill), statistics.median(engine.decode)
        ratios = prefill / statistics.median(base.prefill), decode / statistics.median(base.decode)
        share = decode * engine.weights / peak
        lines.append(
            f"{engine.name:<16} {prefill:>13.1f} {ratios[0]:>6.2f} {decode:>13.1f} {ratios[1]:>6.2f} {share:>10.0%}"
        )
    return "\n".join(lines)


def record(file: Path, model: str, engines: list[Engine], threads: int, peak: float) -> None:
    """Append what was measured to a JSON file that tests.bench.roofline draws."""
    rows = json.loads(file.read_text()) if file.is_file() else []
    for engine in engines:
        decode, prefill = operations(engine)
        rows.append({
            "model": model, "engine": engine.name, "threads": threads, "bytes": engine.weights,
            "decode_tok_s": round(statistics.median(engine.decode), 1), "decode_operations": decode,
            "prefill_tok_s": round(statistics.median(engine.prefill), 1), "prefill_operations": prefill,
            "prompt": PROMPT, "memory_bytes_s": round(peak), "int8_operations_s": round(int8_speed() * threads),
        })  # fmt: skip
    file.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of the simulated runtime beside llama.cpp's.")
    parser.add_argument("--model", choices=MODELS, default=smollm2.NAME, help="default: %(default)s")
    parser.add_argument("--threads", default="1,2", help="comma-separated (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=7, help="measured rounds (default: %(default)s)")
    parser.add_argument("--dtypes", default="w8a8,w8a8_g128,w8a8_g256,w8a8_g512,fp16,fp32", help="default: %(default)s")
    parser.add_argument(
        "--llama-python", type=Path, default=BUILD / "bench-venv" / "bin" / "python",
        help="a Python with llama-cpp-python (default: the one `make bench` builds)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="append the figures to this file, for tests.bench.roofline")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if not options.llama_python.is_file():
        raise SystemExit(f"Error: {options.llama_python} is not there: run `make bench`, which builds llama.cpp")
    dtypes = options.dtypes.split(",")
    print(options.model)
    source = MODELS[options.model]()
    bundles = smollm2.bundles(dtypes, source, options.model)
    theirs = llama_engine(options.llama_python, options.model, source)
    engines = [theirs, *(our_engine(dtype, bundles[dtype]) for dtype in dtypes)]
    for threads in map(int, options.threads.split(",")):
        peak = memory_speed(threads)
        measure(engines, threads, options.repeat)
        peak = max(peak, memory_speed(threads))
        if threads == int(options.threads.split(",")[0]):
            print(*dict.fromkeys(engine.about for engine in engines[:2]), sep="\n")
        print(f"\n{table(engines, threads, peak)}", flush=True)
        if options.json:
            record(options.json, options.model, engines, threads, peak)


if __name__ == "__main__":
    main()
