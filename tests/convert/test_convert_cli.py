"""``rkconvert`` as a user runs it: stdout is data, errors are a sentence and a code, Ctrl-C leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rk3588 import bundle
from rkconvert.commands import default_name
from tests import models

PROGRAM = "from rkconvert.cli import main; main()"


def rkconvert(*args: object, before: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program; ``before`` is Python that runs in it first."""
    command = [sys.executable, "-c", f"{before}\n{PROGRAM}", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_llama(tmp_path_factory.mktemp("source") / "tiny-1")


@pytest.mark.parametrize("command", [[], ["build"]])
def test_paths_on_stdout_and_nothing_else(model: Path, tmp_path: Path, command: list[str]) -> None:
    done = rkconvert(*command, model, "-o", tmp_path / "out", "--dtype", "w8a8", "--dtype", "fp16")
    folders = [tmp_path / "out" / f"tiny-1-rk3588-{dtype}" for dtype in ("w8a8", "fp16")]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(folder) for folder in folders]
    for folder in folders:
        bundle.verify(bundle.read(folder))


def test_options_may_come_first_and_w8a8_is_the_default(model: Path, tmp_path: Path) -> None:
    done = rkconvert("--name", "Other.Name", "-o", tmp_path, model)
    assert done.stdout == f"{tmp_path / 'Other.Name-rk3588-w8a8'}\n"


def test_json_result(model: Path, tmp_path: Path) -> None:
    done = rkconvert(model, "-o", tmp_path, "--json")
    folder = tmp_path / "tiny-1-rk3588-w8a8"
    size = sum(f.stat().st_size for f in folder.iterdir())
    expected = {"name": "tiny-1", "bundles": [{"dtype": "w8a8", "path": str(folder), "bytes": size}]}
    assert json.loads(done.stdout) == expected


def test_dry_run_writes_nothing_and_says_what_it_would(tmp_path: Path) -> None:
    wide = models.tiny_llama(tmp_path / "wide", hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536)
    dtypes = [f"--dtype={name}" for name in ("w8a8", "w8a8_g128", "w8a8_g512", "fp16")]
    text = rkconvert(wide, "-o", tmp_path / "out", "--dry-run", *dtypes).stdout
    assert not (tmp_path / "out").exists()
    assert re.search(r"2 x attn_q +576 x 576 +576 = 4 x 128 \+ 64", text)
    assert re.search(r"2 x ffn_down +576 x 1536 +1536 = 12 x 128", text)
    assert "could not take w8a8_g128 of this model from rkllm-toolkit: K = 576 is not a multiple of 128" in text
    assert "could not take w8a8_g512 of this model from rkllm-toolkit: K = 576 is not a multiple of 512" in text
    assert "could not take w8a8 " not in text
    assert re.search(r"peak memory: about \d+", text)


def test_dry_run_as_json_tells_the_true_sizes(model: Path, tmp_path: Path) -> None:
    dtypes = ["--dtype", "w8a8_g128", "--dtype", "fp32"]
    plan = json.loads(rkconvert(model, "--dry-run", "--json", *dtypes, cwd=tmp_path).stdout)
    assert list(tmp_path.iterdir()) == []
    assert rkconvert(model, "-o", ".", *dtypes, cwd=tmp_path).returncode == 0
    for planned in plan["bundles"]:
        assert planned["bytes"] == pytest.approx(bundle.size(tmp_path / planned["path"]), abs=100)
    down = next(kind for kind in plan["bundles"][0]["linear"] if kind["layer"] == "ffn_down")
    assert down == {"layer": "ffn_down", "count": 2, "n": 64, "k": 160, "groups": 2, "short_group": 32}


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["MODEL", "-o", "out", "--dtype", "int4"], 2, "unknown dtype 'int4': choose one of w8a8, w8a8_g128"),
        (["MODEL", "-o", "out", "--dtype", "fp16", "--dtype", "fp16"], 2, "--dtype fp16 is given more than once"),
        (["MODEL"], 2, "no folder to write into: give -o DIR"),
        (["", "-o", "out"], 2, "Invalid value for 'MODEL': it is empty: give a path"),
        (["MODEL", "-o", ""], 2, "Invalid value for '-o' / '--out': it is empty"),
        (["no/such/thing", "-o", "out"], 2, "no/such/thing does not exist"),
        (["MODEL", "-o", "out", "--name", "../x"], 2, "'../x' cannot be a bundle's name"),
        (["-o", "out"], 2, "Missing argument 'MODEL'"),
        (["MODEL", "-o", "out", "--target", "npu"], 2, "Invalid value for '--target'"),
        ([".", "-o", "out", "--name", "x"], 2, "has no config.json"),
        (["MODEL", "-o", "/proc/none"], 1, "cannot write to /proc/none"),
    ],
)
def test_errors(model: Path, tmp_path: Path, args: list[str], code: int, sentence: str) -> None:
    done = rkconvert(*(str(model) if arg == "MODEL" else arg for arg in args), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_is_a_full_disk(model: Path, tmp_path: Path) -> None:
    """The kernel's own refusal, not a pretended one."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    done = rkconvert(model, "-o", tmp_path / "out", before=limit)
    assert done.returncode == 1
    assert re.fullmatch(
        r"Error: no space left in \S+/out for model.sim.gguf, which needs 0.2 MB: free .*\n", done.stderr
    )
    assert not (tmp_path / "out").exists()  # it was made for this


def test_a_reader_that_leaves(model: Path) -> None:
    """`rkconvert … --dry-run | head -0` ends quietly."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", PROGRAM, str(model), "--dry-run"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# Slows one step down to a crawl and says when it is reached, so that a signal can be sent right there.
SLOW = """
import sys, time
from rk3588 import bundle, hostlib, new_folder
from rkconvert import build
from rkconvert.artifact import reading
reading.BLOCK_BYTES = 1000
def slow(function):
    def call(*args, **kwargs):
        sys.stderr.write("here\\n")  # in one piece, from any thread
        time.sleep(0.02)
        return function(*args, **kwargs)
    return call
"""
STEPS = {
    "quantising": "hostlib.quantise = slow(hostlib.quantise)",
    "writing the header": "build.make_header = slow(build.make_header)",
    "hashing": "bundle.sha256 = slow(bundle.sha256)",
    "making the folder": "new_folder.tempfile.mkdtemp = slow(new_folder.tempfile.mkdtemp)",
    "the manifest": "bundle.json.dumps = slow(bundle.json.dumps)",
    "clean-up": "bundle.write_manifest = lambda *a: 1 / 0; new_folder.shutil.rmtree = slow(new_folder.shutil.rmtree)",
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing(model: Path, tmp_path: Path, step: str, number: int, code: int) -> None:
    command = [sys.executable, "-c", f"{SLOW}\n{STEPS[step]}\n{PROGRAM}", str(model), "-o", str(tmp_path / "out")]
    command += ["--dtype", "w8a8", "--dtype", "w8a8_g128", "--dtype", "fp16"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "here\n"
        process.send_signal(number)
        asked = time.monotonic()
        stdout, stderr = process.communicate(timeout=30)
    left = [p.name for p in (tmp_path / "out").iterdir()] if (tmp_path / "out").exists() else []
    assert (left, stdout) == ([], "")
    if step == "clean-up":
        return  # after another error: which of the two is reported is open
    assert process.returncode == code
    assert time.monotonic() - asked < 10
    said = [line for line in stderr.splitlines() if line and line != "here"]
    assert said == (["Interrupted"] if number == signal.SIGINT else [])


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = "import atexit, sys; atexit.register(lambda: print({'numpy', 'gguf', 'rich'} & {*sys.modules}))"
    done = rkconvert("--help", before=heavy)
    assert done.stdout.endswith("set()\n")
    assert "Convert MODEL into bundles" in done.stdout
    assert "w8a8_g512" in rkconvert("build", "--help").stdout


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Llama-3.2-1B-Instruct"),
        ("tinyllama-1.1b.IQ2_XXS.gguf", "tinyllama-1.1b"),
        ("model-BF16.gguf", "model"),
        ("model-f16.gguf", "model"),
        ("quiz-master.gguf", "quiz-master"),
    ],
)
def test_the_name_of_a_file_without_its_type(file: str, name: str) -> None:
    assert default_name(Path(file)) == name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["acuracy", "x"], "No such command 'acuracy': did you mean 'accuracy'?"),
        (["x", "--dytpe", "w8a8"], "No such option '--dytpe': did you mean '--dtype'?"),
        (["x", "--o", "y"], "No such option '--o': did you mean '--out'?"),
        (["x", "--comm"], "No such option '--comm': did you mean '--community-names'?"),
        (["toolkit", "instal"], "No such command 'instal': did you mean 'install'?"),
    ],
)
def test_a_mistyped_word_gets_the_nearest(arguments: list[str], sentence: str) -> None:
    done = rkconvert(*arguments)
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == f"Error: {sentence}"


def test_dry_run_over_a_bundle_that_exists(model: Path, tmp_path: Path) -> None:
    assert rkconvert(model, "-o", tmp_path).returncode == 0
    before = sorted(tmp_path.rglob("*"))
    done = rkconvert(model, "-o", tmp_path, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    size = bundle.size(tmp_path / "tiny-1-rk3588-w8a8")
    assert f"w8a8: {tmp_path}/tiny-1-rk3588-w8a8, {size / 1e6:.1f} MB" in done.stdout
    assert f"note: {tmp_path}/tiny-1-rk3588-w8a8 exists already: remove it, choose another -o, or give" in done.stdout
    assert "exists already" not in rkconvert(model, "-o", tmp_path, "--dry-run", "--overwrite").stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_template_for_a_model_without_one(tmp_path: Path) -> None:
    """Of a GGUF file nothing can be put beside it."""
    template = tmp_path / "own.jinja"
    template.write_text("<{{ messages[0].content }}>")
    model = models.tiny_gguf(tmp_path / "m.gguf")
    done = rkconvert(model, "-o", tmp_path, "--name", "tiny", "--chat-template", template)
    found = bundle.read(done.stdout.strip())
    assert found.chat_template == template.read_text()
    for text, message in {"{{": "is not a Jinja template that can be used", "\xff": "is not a text in UTF-8"}.items():
        template.write_bytes(text.encode("latin-1"))
        done = rkconvert(model, "-o", tmp_path / "no", "--chat-template", template)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "no").exists()
