"""`python -m tests.fuzz.run --seconds 60`: libFuzzer on the reader of artifacts and on the tokenizer, side by side.

Compiles tests/fuzz/ with clang, AddressSanitizer and UBSan into build/fuzz, and starts from small valid files and
texts of every kind, and from what once failed (tests/fuzz/regressions). What is found is kept in build/fuzz/corpus.
Ends with 1 and the failing input's path where one crashes, leaks, hangs for 20 s or wants 2 GB. Without clang there
is nothing to do: it says so and ends with 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fuzz import seeds

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "fuzz"
REGRESSIONS = Path(__file__).resolve().parent / "regressions"
LIMITS = ["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"]


def why_not() -> str:
    """Why nothing can be fuzzed here; empty: it can."""
    if not shutil.which("clang++"):
        return "no clang++ here (Debian and Ubuntu: apt-get install clang libclang-rt-dev)"
    probe = ["clang++", "-x", "c++", "-", "-fsanitize=fuzzer,address,undefined", "-o", os.devnull]
    code = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    done = subprocess.run(probe, input=code, text=True, capture_output=True)
    return f"clang++ has no libFuzzer here: {done.stderr.strip()[-300:]}" if done.returncode else ""


def build() -> None:
    tools = Path(sys.executable).parent  # pip's cmake and ninja lie beside this Python
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    compilers = ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"]
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DRKSIM_FUZZ=ON", *compilers]
    for command in (configure, ["ninja", "-C", str(BUILD), *(f"fuzz_{target}" for target in seeds.TARGETS)]):
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)


def start(target: str, seconds: int) -> subprocess.Popen[bytes]:
    corpus, failures = BUILD / "corpus" / target, BUILD / "failures" / target
    for folder in (corpus, failures):
        folder.mkdir(parents=True, exist_ok=True)
    known = [str(path) for path in (BUILD / "seeds" / target, REGRESSIONS / target) if path.is_dir()]
    options = [*LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={failures}/"]
    env = {**os.environ, "RKSIM_FUZZ_MODELS": os.pathsep.join(map(str, seeds.vocabularies(BUILD / "seeds")))}
    with (BUILD / f"{target}.log").open("wb") as log:
        command = [str(BUILD / f"fuzz_{target}"), *options, str(corpus), *known]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)


def report(target: str, code: int) -> bool:
    """Says how it ended; whether that was well."""
    text = (BUILD / f"{target}.log").read_text(errors="replace")
    runs = next((line.split()[-1] for line in text.splitlines() if "number_of_executed_units" in line), "?")
    kept = len(list((BUILD / "corpus" / target).iterdir()))
    print(f"fuzz_{target}: {runs} inputs, {kept} kept, {'nothing found' if code == 0 else 'FAILED'}", flush=True)
    if code:
        print(text[-6000:], file=sys.stderr)
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":", 1)[1].split("\n", 1)[0].strip())
    parser.add_argument("--seconds", type=int, default=60, help="for each of the two (default: %(default)s)")
    options = parser.parse_args()
    if reason := why_not():
        print(f"fuzzing skipped: {reason}", file=sys.stderr)
        return
    build()
    seeds.write(BUILD / "seeds")
    running = {target: start(target, options.seconds) for target in seeds.TARGETS}
    try:
        ended = [report(target, process.wait()) for target, process in running.items()]
    finally:
        for process in running.values():
            process.kill()
    sys.exit(not all(ended))


if __name__ == "__main__":
    main()
