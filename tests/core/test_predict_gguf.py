"""`rk3588 predict` of GGUF files, with and without rkconvert, and under Python 3.9."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rk3588 import predict
from rk3588.errors import CheckpointError, UsageError
from rkconvert import shapes
from tests import interpreters, models
from tests.core.test_predict import folder as folder
from tests.core.test_predict import run, said

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_gguf_file_is_read_as_rkconvert_reads_it(folder: Path) -> None:
    file = models.tiny_gguf(folder / "g" / "tiny.Q8_0.gguf", dtype="Q8_0")
    found = json.loads(run(file, "--board", "rock-5b", "--json").stdout)
    assert [f["dtype"] for f in found] == list(predict.PREDICTED)
    source = models.tiny_llama(folder / "hf")
    asked = ("--board", "rock-5b", "--dtype", "w8a8", "--json")
    assert json.loads(run(source, *asked).stdout) == json.loads(run(file, *asked).stdout)
    assert "g is a folder with GGUF files: give one of them: tiny.Q8_0.gguf" in said(run(folder / "g"), CheckpointError)


def test_a_gguf_file_of_another_family(folder: Path) -> None:
    raw = models.tiny_gguf(folder / "m.gguf").read_bytes()
    length = b"\5\0\0\0\0\0\0\0"
    other = raw.replace(b"llama.", b"qwen2.")
    (folder / "m.gguf").write_bytes(other.replace(length + b"llama", length + b"qwen2", 1))
    found = shapes.load(str(folder / "m.gguf"))
    assert (found.family, found.layers, found.hidden, found.vocab, found.kv_heads) == ("qwen2", 2, 64, 384, 2)
    (folder / "m.gguf").write_bytes(raw.replace(length + b"llama", length + b"mamba", 1))
    assert "mamba is no family that predictions know" in said(run(folder / "m.gguf"), CheckpointError)


def test_without_rkconvert_a_gguf_file_is_read_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (models.tiny_gguf(folder / "m.gguf"), "--board", "rock-5b", "--json")
    whole = json.loads(run(*asked).stdout)
    monkeypatch.setitem(sys.modules, "rkconvert.shapes", None)
    assert json.loads(run(*asked).stdout) == whole
    assert "is not a GGUF file" in said(run(_text(folder / "t.gguf")), CheckpointError)
    assert "read by rkconvert: pip install 'rk3588[convert]'" in said(run("someone/model"), UsageError)
    assert run(folder, "--board", "rock-5b").exit_code == 0


def _text(path: Path) -> Path:
    path.write_text("hello")
    return path


def test_under_python_3_9(folder: Path, pyz: Path) -> None:
    """rkconvert does not run there: it said that there is "no None". The zipapp has what the sources need there."""
    old = interpreters.python(9)
    if old is None:
        pytest.skip("there is no Python 3.9 on this machine")
    program = f"import sys; sys.path[:0] = {[str(ROOT), str(pyz)]}; from rk3588.cli import main; main()"

    def predicted(model: object) -> subprocess.CompletedProcess[str]:
        command = [old, "-I", "-c", program, "predict", str(model), "--board", "rock-5b"]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder)

    done = predicted(models.tiny_gguf(folder / "m.gguf"))
    assert (done.returncode, done.stderr) == (0, "") and "m: " in done.stdout
    done = predicted("someone/model")
    assert done.returncode == 2 and "all else is read by rkconvert, which needs Python 3.10 or newer" in done.stderr
