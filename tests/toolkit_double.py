"""rkllm-toolkit's double (``rkllm_double/``), installed by ``rkconvert toolkit install`` into folders of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rkconvert.toolkit.install import search_python
from tests.rkllm_double import backend

PACKAGE = Path(__file__).with_name("rkllm_double")
BANNER = b"NOT AN RKLLM MODEL"
PROGRAM = "from rkconvert.cli import main; main()"
CALL = (sys.executable, "-c", PROGRAM)
INSTALLED = (str(Path(sys.executable).parent / "rkconvert"),)


@dataclass(frozen=True)
class Installed:
    """A user's home with the double in it; programs run with ``env``."""

    home: Path

    @property
    def env(self) -> dict[str, str]:
        return environment(self.home)

    @property
    def python(self) -> Path:
        folder = self.home / "data" / "rk3588" / "toolkit"
        environment: str = json.loads((folder / "toolkit.json").read_text())["toolkits"][-1]["environment"]
        return folder / environment / "bin" / "python"

    def rkconvert(self, *args: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return rkconvert(*args, env={**self.env, **variables})


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "XDG_DATA_HOME": str(home / "data"), "XDG_STATE_HOME": str(home / "state")}


def rkconvert(
    *args: object, env: dict[str, str], program: tuple[str, ...] = CALL, **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [*program, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, **options)


def need_python(version: str) -> None:
    """Skip the test where the machine has no such interpreter."""
    if search_python(version) is None:
        pytest.skip(f"Python {version}, which rkllm-toolkit's wheels are for, is not on this machine")


def install(home: Path, interpreter: str) -> Installed:
    """In a folder where modules lie that nobody is to run."""
    littered = home / "littered"
    littered.mkdir()
    for name in ("venv", "pip", "subprocess"):
        (littered / f"{name}.py").write_text("raise ImportError('of the current folder')\n")
    words = ("toolkit", "install", PACKAGE, "--python", interpreter, "--allow-unknown")
    done = rkconvert(*words, env=environment(home), program=INSTALLED, cwd=littered)
    assert done.returncode == 0, done.stderr
    return Installed(home)


def build_wheel(folder: Path, tag: str, version: str = "1.1.1+double") -> Path:
    """A wheel of the double with the tag of one of Rockchip's."""
    folder.mkdir(parents=True, exist_ok=True)
    return backend.write_wheel(folder, tag, version)


def put(home: Path, version: str) -> Installed:
    """The double of another release, installed as if by pip, which would take seconds: its "interpreter" is this one,
    told where the package lies."""
    place = home / "data" / "rk3588" / "toolkit" / f"python-{version}"
    with zipfile.ZipFile(build_wheel(home / "wheels", "cp310-cp310-linux_x86_64", version)) as wheel:
        wheel.extractall(place / "site")
    python = place / "bin" / "python"
    python.parent.mkdir()
    start = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv.pop(0); "
    start += "runpy.run_path(sys.argv[0], run_name='__main__')"
    # The driver's first two arguments, -I and -u, are for this one.
    python.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" -I -u -c "{start}" "{place}/site" "$@"\n')
    python.chmod(0o755)
    record = place.parent / "toolkit.json"
    entry = {"environment": place.name, "package": "double.whl", "md5": None, "known": False, "version": version}
    before = json.loads(record.read_text())["toolkits"] if record.exists() else []
    record.write_text(json.dumps({"toolkits": [*before, {**entry, "python": "3.10.0"}]}))
    return Installed(home)
