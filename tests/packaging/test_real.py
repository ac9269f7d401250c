"""Two real checkpoints of other families than Llama, fetched by `.ci/setup real`; skipped by name without it.

Their fp32 bundles are compared with llama.cpp's logits by tests/real_llama_cpp.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rkconvert.sources.opening import open_source
from tests import smollm2
from tests.real_models import GEMMA, QWEN, RealModel, hash_of

DTYPES = ("w8a8", "w8a8_g128", "fp16")


def needs(model: RealModel) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(model.missing), reason=model.missing)


def answer(bundle: Path, prompt: str, *options: str) -> str:
    """`rk3588 run BUNDLE PROMPT`, greedy, on the simulated runtime, as a user runs it."""
    program = [sys.executable, "-c", "from rk3588.cli import main; main()", "run", str(bundle), prompt]
    options = (*options, "--library", "sim", "--temp", "0", "--repeat-penalty", "1")
    done = subprocess.run([*program, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs(QWEN)
def test_qwen_is_read_in_seconds() -> None:
    started = time.monotonic()
    source = open_source(QWEN.path)
    assert time.monotonic() - started < 20
    config = source.config
    assert (config.family, config.layers, config.hidden, config.vocab_size) == ("qwen2", 24, 896, 151936)
    assert config.biases == {"attn_q", "attn_k", "attn_v"}
    assert source.vocabulary.tokens[151645] == "<|im_end|>"
    assert 151645 in source.vocabulary.eos_ids


@needs(GEMMA)
def test_gemma_is_read_in_seconds() -> None:
    started = time.monotonic()
    source = open_source(GEMMA.path)
    assert time.monotonic() - started < 20
    config = source.config
    assert (config.family, config.layers, config.hidden, config.vocab_size) == ("gemma3", 18, 640, 262144)
    assert config.windows == tuple(0 if i % 6 == 5 else 512 for i in range(18))
    assert (config.tied, config.rope.theta, config.rope.local_theta) == (True, 1e6, 1e4)
    assert source.vocabulary.add_bos


@pytest.mark.slow
@pytest.mark.parametrize("model", [pytest.param(m, marks=needs(m), id=m.file) for m in (QWEN, GEMMA)])
def test_it_is_the_file_that_is_meant(model: RealModel) -> None:
    assert hash_of(model.path) == model.sha256


REVERSED = """
import sys
names = {}
exec(compile(sys.argv[1], "answer", "exec"), names)
(function,) = [value for value in names.values() if hasattr(value, "__code__")]
print(function("stressed"))
"""


@pytest.mark.slow
@needs(QWEN)
def test_qwen_writes_a_function_that_reverses_a_string(tmp_path: Path) -> None:
    smollm2.convert(QWEN.path, tmp_path, DTYPES, name="qwen")
    for dtype in DTYPES:
        bundle = tmp_path / f"qwen-rk3588-{dtype}"
        told = answer(bundle, "Write a Python function that reverses a string.", "-n", "200")
        block = re.search(r"```python\n(.*?)```", told, re.DOTALL)
        assert block, told
        command = [sys.executable, "-I", "-c", REVERSED, block[1].split("# Example")[0]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.stdout.splitlines()[-1:] == ["desserts"], (dtype, told, done.stderr)


@pytest.mark.slow
@needs(GEMMA)
def test_gemma_goes_on_sensibly(tmp_path: Path) -> None:
    """The model without training in chats, and without a template: texts that it is to continue."""
    smollm2.convert(GEMMA.path, tmp_path, DTYPES, name="gemma")
    for dtype in DTYPES:
        bundle = tmp_path / f"gemma-rk3588-{dtype}"
        for text, expected in (
            ("Monday, Tuesday, Wednesday,", " Thursday, Friday, Saturday"),
            ("The opposite of hot is", " cold"),
            ("Question: What colour is the sky on a clear day? Answer:", " Blue"),
        ):
            assert answer(bundle, text, "--raw", "-n", "12").startswith(expected), dtype
