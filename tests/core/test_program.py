"""Ctrl-C before a program has begun is one word and exit code 130, never a traceback of Python's imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rk3588 import lazy
from tests import interpreters
from tests.fakes import ROOT

# The signal comes while `click` is imported, the first thing that either program imports.
CODE = """
import importlib.abc, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Impatient(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Impatient())
from rk3588 import program
getattr(program, sys.argv[1])()
"""


@pytest.mark.parametrize("name", ["rk3588", "rkconvert"])
def test_ctrl_c_while_importing(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, name], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted\n")


@pytest.mark.parametrize("name", ["rk3588", "rkconvert"])
def test_the_program_begins(name: str) -> None:
    code = f"import sys; sys.argv = ['x', '--version']; from rk3588 import program; program.{name}()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith(f"{name}, version ")


WITHOUT_EXTRAS = """
import importlib.abc, sys
from rk3588 import lazy, program

class Bare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in lazy.EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())
getattr(program, sys.argv.pop(1))()
"""


@pytest.mark.parametrize(
    "words",
    ["x.gguf -o out", "build --help", "toolkit status", "sweep x.yaml", "card .", "accuracy x", "recommend x"],
)
def test_without_the_extras_one_sentence_says_what_to_install(words: str, tmp_path: Path) -> None:
    for name in ("x", "x.gguf", "x.yaml"):
        (tmp_path / name).touch()
    done = without_extras("rkconvert", words, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"Error: this needs \w+: pip install 'rk3588\[convert\]'\n", done.stderr), done.stderr


def test_every_extra_of_the_package_is_known_by_its_modules() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in set(lazy.EXTRAS.values()):
        line = next(line for line in text.splitlines() if line.startswith(f"{extra} = "))
        modules = {name.replace("-", "_") for name in re.findall(r'"([\w-]+)[<>=]', line)}
        assert modules == {module for module, its in lazy.EXTRAS.items() if its == extra}


OLD = (
    "rkconvert needs Python 3.10 or newer, and this is 3.9: install rk3588 with a newer one and convert there; "
    "bundles and all other commands work with this one"
)


@pytest.mark.parametrize("words", [[], ["--help"], ["build", "--help"], ["MODEL", "-o", "out"], ["sweep", "x.yaml"]])
def test_the_converter_on_a_python_that_is_too_old(words: list[str]) -> None:
    code = "import sys; from rk3588 import program; sys.argv[0] = 'rkconvert'; program.rkconvert()"
    done = on_oldest("-c", code, *words)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {OLD}\n")


@pytest.mark.parametrize("words", [["-c", "import rkconvert.quantise"], ["-m", "rkconvert.cli"]])
def test_every_other_way_into_the_converter_ends_with_that_sentence(words: list[str]) -> None:
    done = on_oldest(*words)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(f"ImportError: {OLD}") or done.stderr.rstrip().endswith(f"({OLD})")


def without_extras(program: str, words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "convert", "runtime"))
    command = [sys.executable, "-c", WITHOUT_EXTRAS, program, *words.split()]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=folder)


def on_oldest(*words: str) -> subprocess.CompletedProcess[str]:
    python = interpreters.python(9)
    if python is None:
        pytest.skip("there is no Python 3.9 on this machine")
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "convert", "runtime"))
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([python, *words], capture_output=True, text=True, timeout=60, env=environment)
