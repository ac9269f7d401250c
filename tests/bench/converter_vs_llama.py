"""`make bench`: rkconvert beside llama.cpp's llama_model_quantize, same tensors, same machine, same threads.

rkconvert reads bf16 safetensors and writes three dtypes in one run, with a checksum of every tensor and the SHA-256
of every file read and written; its input counts once, and its time is that of the whole command. llama.cpp reads the
same tensors as F16 GGUF and writes Q8_0; the loading of its library does not count. Neither is made to wait for the
disk, except that rkconvert syncs what it wrote. The two take turns, so that a busy moment hits both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.make_checkpoint import FULL, SMALL, Size

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build"
DTYPES = ["w8a8", "w8a8_g128", "w8a8_g512"]
GOAL, MOST_MEMORY = 2.0, 1.2e9
NEEDED = {FULL: 26e9, SMALL: 8e9}  # bytes of disk: both sources and three bundles


@dataclass
class Tally:
    """One program's runs: seconds that count, and what the operating system says of the process."""

    name: str
    bytes: int
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0  # peak resident set of the worst run

    @property
    def speed(self) -> float:
        return self.bytes / statistics.median(self.seconds) / 1e9

    def row(self) -> str:
        spread = f"{min(self.seconds):.1f}-{max(self.seconds):.1f}"
        cpu = statistics.median(self.cpu)
        return f"{self.name:<34} {self.speed:>8.2f} {spread:>12} {cpu:>8.1f} {self.memory / 1e6:>9.0f}"


def run(command: list[str], threads: int) -> tuple[str, float, float, int]:
    """Its output, seconds, CPU seconds and peak memory in bytes."""
    # Few threads are taken as few cores: rkconvert uses all it may.
    cores = sorted(os.sched_getaffinity(0))[:threads]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in (".", "convert", "runtime"))}
    started = time.perf_counter()
    process = subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"Error: {command[0]} ended with exit code {process.returncode}; see above")
    return text, time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def convert(folder: Path, out: Path, dtypes: list[str], threads: int, tally: Tally) -> None:
    chosen = [word for dtype in dtypes for word in ("--dtype", dtype)]
    program = [sys.executable, "-c", "from rkconvert.cli import main; main()", str(folder), "-o", str(out)]
    _, seconds, cpu, memory = run([*program, *chosen], threads)
    shutil.rmtree(out)
    tally.seconds.append(seconds)
    tally.cpu.append(cpu)
    tally.memory = max(tally.memory, memory)


def quantise(python: Path, source: Path, target: Path, threads: int, tally: Tally) -> None:
    script = str(HERE / "converter_llama.py")
    text, _, cpu, memory = run([str(python), script, str(source), str(target), str(threads)], threads)
    target.unlink()
    tally.seconds.append(float(text))
    tally.cpu.append(cpu)
    tally.memory = max(tally.memory, memory)


def sources(work: Path, size: Size, options: argparse.Namespace) -> tuple[Path, Path]:
    """The checkpoint and the GGUF file, written by a process of its own: memory is measured here."""
    name = "3b" if size is FULL else "3b-small"
    folder, file = work / name, work / f"{name}.F16.gguf"
    if not (folder.is_dir() and file.is_file()):
        print(f"writing {folder} and {file.name}", file=sys.stderr, flush=True)
        words = [] if size is FULL else ["--small"]
        command = [sys.executable, "-m", "tests.bench.make_checkpoint", str(folder), "--gguf", str(file), *words]
        run(command, options.threads)
    return folder, file


def measure(options: argparse.Namespace) -> list[Tally]:
    size = FULL if options.full else SMALL
    folder, file = sources(options.work, size, options)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    llama = Tally("llama.cpp F16 -> Q8_0", file.stat().st_size)
    three, one = Tally(f"rkconvert -> {', '.join(DTYPES)}", weights), Tally("rkconvert -> w8a8 alone", weights)
    for round_ in range(options.repeat + 1):
        print(f"round {round_} of {options.repeat}", file=sys.stderr, flush=True)
        kept = [llama, three, one] if round_ else [Tally("", 1) for _ in range(3)]  # the first fills the page cache
        quantise(options.llama_python, file, options.work / "target.gguf", options.threads, kept[0])
        convert(folder, options.work / "bundles", DTYPES, options.threads, kept[1])
        convert(folder, options.work / "bundles", DTYPES[:1], options.threads, kept[2])
    if not options.keep:
        shutil.rmtree(folder)
        file.unlink()
    return [llama, three, one]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory of the converter beside llama.cpp's quantiser.")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--repeat", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="the 6.4 GB of Llama 3.2 3B, not 5 layers with 1.2 GB")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint for the next time")
    parser.add_argument("--work", type=Path, default=BUILD / "cache" / "converter", help="default: %(default)s")
    parser.add_argument(
        "--llama-python", type=Path, default=BUILD / "bench-venv" / "bin" / "python",
        help="a Python with llama-cpp-python (default: the one `make bench` builds)",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    options = parse()
    if not options.llama_python.is_file():
        raise SystemExit(f"Error: {options.llama_python} is not there: run `make bench`, which builds llama.cpp")
    options.work.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in options.work.rglob("*") if path.is_file())  # of the last time
    if shutil.disk_usage(options.work).free + there < NEEDED[FULL if options.full else SMALL]:
        raise SystemExit(f"Error: {options.work} has too little room: give another --work, or leave --full out (8 GB)")
    llama, three, one = tallies = measure(options)
    print(
        f"{llama.bytes / 1e9:.1f} GB of weights, {options.threads} threads, medians of {options.repeat}\n"
        f"{'':<34} {'GB/s in':>8} {'seconds':>12} {'CPU s':>8} {'peak MB':>9}"
    )
    for tally in tallies:
        print(tally.row())
    print(f"three dtypes in one run: {three.speed / llama.speed:.2f}x of llama.cpp (goal {GOAL:.0f}x)")
    print(f"one dtype: {one.speed / llama.speed:.2f}x")
    fits = "holds" if three.memory <= MOST_MEMORY else "MISSED"
    print(f"peak memory {three.memory / 1e9:.2f} GB (at most {MOST_MEMORY / 1e9:.1f} GB: {fits})")


if __name__ == "__main__":
    main()
