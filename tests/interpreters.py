"""The Python interpreters of this machine, by minor version: on the PATH or under pyenv."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path


@functools.cache
def python(minor: int) -> str | None:
    """Path of a Python 3.``minor`` that runs; None where there is none."""
    if minor == sys.version_info.minor:
        return sys.executable
    pyenv = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
    for candidate in (f"python3.{minor}", *map(str, pyenv)):
        # A shim on the PATH may stand for nothing.
        check = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
        found = shutil.which(candidate)
        if found and subprocess.run([found, "-c", check], capture_output=True).returncode == 0:
            return found
    return None
