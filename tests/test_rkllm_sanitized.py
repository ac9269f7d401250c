"""The tests of the ABI once more over a library built with sanitisers: memory, undefined behaviour, leaks, races."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TESTS = [
    "tests/test_rkllm.py",
    "tests/test_rkllm_threads.py",
    "tests/test_rkllm_refusals.py",
    "tests/test_rkllm_sentencepiece.py",
    "tests/test_rkllm_faults.py",
    "tests/test_rkllm_lora.py",
    "tests/test_rkllm_prompt_cache.py",
]
# What loads the library into this Python would need the sanitiser in it, too.
CHOSEN = "not exports and not real_model and not binding and not library_kills"


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_under_sanitizers(sanitizer: str) -> None:
    build = ROOT / "build" / f"sanitize-{sanitizer.split(',')[0]}"
    tools = Path(sys.executable).parent  # pip's cmake and ninja lie beside this Python
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DRKSIM_SANITIZE={sanitizer}"]
    subprocess.run(configure, check=True, env=env, stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", str(build), "rkllmrt"], check=True, env=env, stdout=subprocess.DEVNULL)

    env |= {
        "RKLLM_LIBRARY": str(build / "librkllmrt.so"),
        "RKLLM_DRIVER_FLAGS": f"-fsanitize={sanitizer}",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-k", CHOSEN, *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
