"""The binding in processes: which library it loads and which it does not, other Pythons, the end of a program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rk3588 import runtime
from rk3588.errors import LibraryError
from rkruntime import loader
from rkruntime.binding import RKLLM
from tests.fakes import ROOT, fake_rkllm, journal
from tests.runtime.test_binding import ENDLESS


def test_libraries_that_cannot_be_used(tmp_path: Path) -> None:
    """A struct of another layout handed to rkllm_init: a crash, or settings that mean something else."""
    with pytest.raises(LibraryError, match="not librkllmrt: it has no rkllm_init"):
        loader.load(os.environ["RKSIM_LIBRARY"])
    (tmp_path / "model").write_text("empty 2\n")
    older = fake_rkllm(tmp_path, "-DWITHOUT_ASYNC", '-DVERSION="1.0.1"')
    with pytest.raises(LibraryError, match=r"librkllmrt.so is librkllmrt 1\.0, whose structs differ"):
        RKLLM(tmp_path / "model", library=older)
    assert journal(older) == []


def test_where_the_library_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong order: the user's choice beaten by a library that lies around, or a .rkllm given to the twin."""
    library = fake_rkllm(tmp_path)
    system, twin = tmp_path / "system.so", tmp_path / "twin.so"
    monkeypatch.setattr(runtime, "SYSTEM", system)
    monkeypatch.setattr(runtime, "packaged", lambda _: twin)
    monkeypatch.setenv(runtime.VARIABLE, str(library))
    system.touch()
    assert runtime.find(system) == system
    assert runtime.find() == library
    monkeypatch.delenv(runtime.VARIABLE)
    assert runtime.find() == twin
    assert runtime.find(npu=True, sim=False) == system
    system.unlink()
    with pytest.raises(LibraryError, match=r"which runs \.rkllm models, was not found"):
        runtime.find(npu=True, sim=False)
    monkeypatch.setenv(runtime.VARIABLE, "absent.so")
    with pytest.raises(LibraryError, match=r"no library absent.so .from RKLLM_LIBRARY"):
        runtime.find()


def _python39() -> str:
    found = [shutil.which("python3.9"), *sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python"))]
    for python in found:
        if python and subprocess.run([python, "--version"], capture_output=True).returncode == 0:  # not a pyenv shim
            return str(python)
    pytest.skip("there is no Python 3.9 here")


@pytest.mark.parametrize("release", ["1.1.1", "1.3.1"])
def test_python_39_runs_the_binding(tmp_path: Path, release: str) -> None:
    """Syntax or a library call that boards' Python 3.9 does not have."""
    python, library = _python39(), fake_rkllm(tmp_path, release=release)
    sources = [*(ROOT / "rk3588").rglob("*.py"), *(ROOT / "runtime" / "rkruntime").rglob("*.py")]
    check = "import sys\nfor name in sys.argv[1:]: compile(open(name, encoding='utf-8').read(), name, 'exec')"
    subprocess.run([python, "-c", check, *map(str, sources)], check=True)
    (tmp_path / "model").write_text("waiting 1 e4\ntoken 2 bda0\nempty 2\n")
    program = (
        "import sys\nfrom rkruntime.binding import RKLLM\n"
        "with RKLLM(sys.argv[1], library=sys.argv[2], top_k=1) as llm:\n"
        "    print(ascii([t.text for t in llm.generate('x')]))\n"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    command = [python, "-W", "error", "-c", program, str(tmp_path / "model"), str(library)]
    assert subprocess.check_output(command, env=environment, text=True).strip() == r"['', '\u4f60']"


def test_a_program_that_forgets_to_close_ends(tmp_path: Path) -> None:
    """An exit that hangs on a run nobody reads, or a crash in it."""
    library = fake_rkllm(tmp_path)
    (tmp_path / "model").write_text(ENDLESS + "\n")
    program = (
        "import sys\nfrom rkruntime.binding import RKLLM\n"
        "llm = RKLLM(sys.argv[1], library=sys.argv[2])\ngeneration = llm.generate('x')\nprint(next(generation).text)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    command = [sys.executable, "-c", program, str(tmp_path / "model"), str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "")
