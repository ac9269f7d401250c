"""Pack the daemon and all it needs into one file that any Python from 3.9 on runs: ``python3 rkchatd.pyz``.

The dependencies are resolved by the oldest Python it has to run on: what a newer one would choose may not run there.
Without a Python 3.9 on this machine the oldest newer one stands in, and a warning says so. Compiled parts are left
out; each of these packages does without. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
OLDEST = (3, 9)
WHEELS = TOP / "build" / "pyz-wheels"
SOURCES = {"rk3588": TOP / "rk3588", "rkruntime": TOP / "runtime" / "rkruntime"}
_LEFT_OUT = {".so", ".pyc", ".pyd"}
_OF_PIP = {"RECORD", "WHEEL", "INSTALLER", "REQUESTED", "direct_url.json"}  # how it came here, not what it is
_SHEBANG = b"#!/usr/bin/env python3\n"
# Parsed by whatever `python3` is on an old board before any of the rest is.
_MAIN = """\
import sys

if sys.version_info < (3, 9):
    sys.exit("Error: rkchatd needs Python 3.9 or newer, this is %d.%d: run it with a newer one" % sys.version_info[:2])

from rk3588.program import rkchatd

rkchatd()
"""


def requirements() -> list[str]:
    """What the daemon needs at run time, as this package's own metadata says it."""
    found = []
    for line in metadata.requires("rk3588") or []:
        requirement, _, marker = line.partition(";")
        if not marker or re.search(r"""extra == ['"]daemon['"]""", marker):
            found.append(requirement.strip())
    return found


def oldest_python() -> str:
    """The interpreter nearest to the oldest one supported."""
    for minor in range(OLDEST[1], sys.version_info.minor):
        pyenv = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        for candidate in (f"python3.{minor}", *map(str, pyenv)):
            if shutil.which(candidate) and _is_version(candidate, minor):
                return candidate
    return sys.executable


def _is_version(python: str, minor: int) -> bool:
    """Whether it runs and has pip: a shim on the PATH may stand for nothing."""
    check = f"import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, {minor}))"
    return subprocess.run([python, "-c", check], capture_output=True).returncode == 0


def fetch(wheels: Path, python: str) -> None:
    """Download what ``python`` chooses into ``wheels``, unless it is there from an earlier call."""
    wanted = "\n".join([python, *requirements()])
    stamp = wheels / "fetched.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    shutil.rmtree(wheels, ignore_errors=True)
    with _pip(python) as pip:
        _run([*pip, "download", "--only-binary", ":all:", "--dest", str(wheels), *requirements()])
    stamp.write_text(wanted)


def collect(stage: Path, wheels: Path, python: str) -> None:
    """Fill ``stage`` with the dependencies out of ``wheels`` and with our packages."""
    with _pip(python) as pip:
        found = ["--no-index", "--find-links", str(wheels)]
        _run([*pip, "install", "--no-compile", *found, "--target", str(stage), *requirements()])
    shutil.rmtree(stage / "bin", ignore_errors=True)
    for name, source in SOURCES.items():
        shutil.copytree(source, stage / name)
    shutil.copy(TOP / "LICENSE", stage / "LICENSE")
    (stage / "__main__.py").write_text(_MAIN)


@contextmanager
def _pip(python: str) -> Iterator[list[str]]:
    """A pip that belongs to ``python``, and leaves nothing in it."""
    with tempfile.TemporaryDirectory() as folder:
        _run([python, "-m", "venv", folder])
        yield [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet"]


def pack(stage: Path, target: Path) -> None:
    """``stage`` as one runnable file, put in its place whole."""
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        file.write(_SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(stage.rglob("*")):
                if path.is_file() and path.suffix not in _LEFT_OUT and path.name not in _OF_PIP:
                    # A date would make each build another file.
                    entry = zipfile.ZipInfo(path.relative_to(stage).as_posix(), (1980, 1, 1, 0, 0, 0))
                    entry.external_attr = 0o644 << 16
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, path.read_bytes())
    part.chmod(0o755)
    part.replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, nargs="?", help="the file to write; without it, only fetch")
    parser.add_argument("--python", help="the interpreter that resolves the dependencies [the oldest found]")
    arguments = parser.parse_args()
    python = arguments.python or oldest_python()
    if not _is_version(python, OLDEST[1]):
        print(f"Warning: there is no Python 3.9 here: what {python} chooses may not run there", file=sys.stderr)
    fetch(WHEELS, python)
    if arguments.target is None:
        return
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        collect(Path(folder), WHEELS, python)
        pack(Path(folder), arguments.target)
    print(arguments.target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"Error: `{' '.join(command[:4])} …` failed: {done.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    main()
