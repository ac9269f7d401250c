"""The twin's tests once more over libraries built with sanitisers: memory, undefined behaviour, leaks, races.

The ABI's tests run a C program, which is instrumented as the library is, leaks and all. The others load the library
into this Python, with the sanitiser's runtime loaded first: then only what our library does is looked at, and leaks
are not (Python has its own). Races inside `tokenizers`, which the tests compare with, are not ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.twins import RELEASES

SANITIZERS = ["address,undefined", "thread"]
FROM_C = [
    "test_rkllm", "test_rkllm_threads", "test_rkllm_refusals", "test_rkllm_sentencepiece", "test_rkllm_faults",
    "test_rkllm_lora", "test_rkllm_prompt_cache", "test_rkllm_multimodal", "test_rkllm_programs", "test_rkllm_process",
    "test_twins", "test_twins_chat", "test_twins_newer", "test_twins_callers",
]  # fmt: skip
FROM_PYTHON = [
    "test_numerics", "test_logits", "test_tokenizer_files", "test_tokenizer_parts", "test_binding_twin",
    "test_sim_gguf", "test_quant", "test_damage", "test_convert_files",
]  # fmt: skip
# Not these: what a build with sanitisers exports, what takes minutes in it, and sizes of address space.
LEFT_OUT = "not exports and not real_model and not smollm2 and not large and not quickly"


# What loads the library into this Python would need the sanitiser in it, too.
LEFT_OUT_FROM_C = f"{LEFT_OUT} and not binding and not library_kills and not of_the_layout"
# It knows no threads in forked children ("dup thread with used id"); and a string that is overwritten while it may be
# read is a race, of the test's own.
NOT_WITH_TSAN = " and not fork and not child and not overwritten"


def build(sanitizer: str, *targets: str) -> Path:
    folder = ROOT / "build" / f"sanitize-{sanitizer.split(',')[0]}"
    tools = Path(sys.executable).parent  # pip's cmake and ninja lie beside this Python
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DRKSIM_SANITIZE={sanitizer}"]
    subprocess.run(configure, check=True, env=env, stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", str(folder), *targets], check=True, env=env, stdout=subprocess.DEVNULL)
    return folder


def run_tests(names: list[str], left_out: str, env: dict[str, str]) -> None:
    files = [str(found) for name in names for found in (ROOT / "tests").glob(f"*/{name}.py")]
    assert len(files) == len(names)
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-k", left_out, *files]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]


def runtime(sanitizer: str) -> str:
    """The libraries to load first; libstdc++ with them, since ASan looks for its functions once, at the start."""
    names = ["libtsan.so" if sanitizer == "thread" else "libasan.so", "libstdc++.so.6"]
    found = [
        subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    return " ".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_from_c(sanitizer: str) -> None:
    library = build(sanitizer, "rkllmrt", *(f"rkllmrt-{release}" for release in RELEASES)) / "librkllmrt.so"
    environment = {
        "RKLLM_LIBRARY": str(library),
        "RKLLM_DRIVER_FLAGS": f"-fsanitize={sanitizer}",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": "report_signal_unsafe=0",  # a handler that destroys frees memory, and the docs say so
    }
    run_tests(FROM_C, LEFT_OUT_FROM_C + (NOT_WITH_TSAN if sanitizer == "thread" else ""), environment)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_from_python(sanitizer: str, tmp_path: Path) -> None:
    folder = build(sanitizer)
    theirs = tmp_path / "suppressions"
    theirs.write_text("called_from_lib:tokenizers.abi3.so\nrace:tokenizers.abi3.so\n")
    environment = {
        "LD_PRELOAD": runtime(sanitizer),
        "RKSIM_LIBRARY": str(folder / "librksim.so"),
        "RKLLM_LIBRARY": str(folder / "librkllmrt.so"),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": f"halt_on_error=1:suppressions={theirs}:ignore_noninstrumented_modules=1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    run_tests(FROM_PYTHON, LEFT_OUT, environment)
