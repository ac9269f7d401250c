"""Pack the daemon and all it needs into one file that any Python from 3.9 on runs: ``python3 rkchatd.pyz``.

What it needs is pinned in ``pyz-requirements.txt``, by version and hash: wheels for the oldest Python it has to run on,
whatever Python and machine this is. Compiled parts are left out; each of these packages does without. The same sources
give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
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
PINS = Path(__file__).with_name("pyz-requirements.txt")
WHEELS = TOP / "build" / "pyz-wheels"
SOURCES = {"rk3588": TOP / "rk3588", "rkruntime": TOP / "runtime" / "rkruntime"}
WEB = TOP / "runtime" / "web"
# One wheel for everybody, since nothing compiled of it is kept.
_OLDEST = ("--python-version", "3.9", "--implementation", "cp", "--abi", "cp39", "--platform", "manylinux2014_x86_64")
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
_HEADER = """\
# What rkchatd.pyz is made of. Newer versions that Python 3.9 can run: see `make_pyz.py --help`, --renew.
"""


def requirements() -> list[str]:
    """What the daemon needs at run time, as this package's own metadata says it."""
    found = []
    for line in metadata.requires("rk3588") or []:
        requirement, _, marker = line.partition(";")
        if not marker or re.search(r"""extra == ['"]daemon['"]""", marker):
            found.append(requirement.strip())
    return found


def renew(python: str) -> None:
    """Pin what ``python``, a 3.9, would choose today: markers are its own, and newer versions may not run there."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        _run([python, "-I", "-m", "venv", f"{folder}/venv"])
        pip = [f"{folder}/venv/bin/python", "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "install", "--upgrade", "pip"])
        choose = ["install", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", str(report)]
        _run([*pip, *choose, *_OLDEST, "--target", folder, *requirements()])
        chosen = json.loads(report.read_text(encoding="utf-8"))["install"]
    lines = []
    for package in chosen:
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name.lower()}=={version} --hash=sha256:{digest}\n")
    PINS.write_text(_HEADER + "".join(sorted(lines)), encoding="utf-8")


def fetch(folder: Path) -> list[Path]:
    """The pinned wheels in ``folder``, downloaded unless they are all there."""
    wanted = re.findall(r"--hash=sha256:([0-9a-f]{64})", PINS.read_text(encoding="utf-8"))
    for attempt in ("those that are there", "downloaded"):
        found = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in sorted(folder.glob("*.whl"))}
        if set(wanted) <= found.keys():
            return [found[digest] for digest in wanted]
        if attempt == "downloaded":
            break
        shutil.rmtree(folder, ignore_errors=True)
        with _pip() as pip:
            exact = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
            _run([*pip, "download", *exact, *_OLDEST, "--dest", str(folder), "--requirement", str(PINS)])
    sys.exit(f"Error: {folder} has not what {PINS.name} pins")


def collect(stage: Path, wheels: list[Path]) -> None:
    """Fill ``stage`` with the dependencies out of ``wheels`` and with our packages."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(stage)
    for name, source in SOURCES.items():
        shutil.copytree(source, stage / name)
    shutil.copytree(WEB, stage / "rk3588" / "web")
    shutil.copy(TOP / "boards.yaml", stage / "rk3588" / "boards.yaml")
    shutil.copy(TOP / "LICENSE", stage / "LICENSE")
    (stage / "__main__.py").write_text(_MAIN)


@contextmanager
def _pip() -> Iterator[list[str]]:
    """This Python's pip, else one that is gone afterwards: where wheels are built there may be none.

    -I: past what a build puts into PYTHONPATH, and past the current folder.
    """
    words = ["-I", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if subprocess.run([sys.executable, *words, "--version"], capture_output=True).returncode == 0:
        yield [sys.executable, *words]
        return
    with tempfile.TemporaryDirectory() as folder:
        _run([sys.executable, "-I", "-m", "venv", folder])
        yield [f"{folder}/bin/python", *words]


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
    parser.add_argument("--renew", metavar="PYTHON", help="pin what this Python, a 3.9 on x86-64, would choose today")
    arguments = parser.parse_args()
    if arguments.renew:
        renew(arguments.renew)
    wheels = fetch(WHEELS)
    if arguments.target is None:
        return
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        collect(Path(folder), wheels)
        pack(Path(folder), arguments.target)
    print(arguments.target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        shown = " ".join(command[:6])
        sys.exit(f"Error: `{shown} …` failed: {done.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    main()
