"""Ctrl-C before a program has begun is one word and exit code 130, never a traceback of Python's imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
