"""SmolLM2-135M-Instruct as bundles, converted once and kept in build/cache until the converter or the model changes."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rk3588 import hostlib
from tests.models import smollm2_gguf

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "cache"
NAME = "SmolLM2-135M-Instruct"
_DAY = 86400


def bundles(dtypes: Iterable[str], model: Path | None = None, name: str = NAME) -> dict[str, Path]:
    """One bundle for each dtype; those not there yet are converted in one pass over the model. ``model`` may be another
    than SmolLM2."""
    model = model or smollm2_gguf()
    folder = CACHE / f"smollm2-{_key(model)}"
    wanted = {dtype: folder / f"{name}-rk3588-{dtype}" for dtype in dtypes}
    with _alone():
        _forget_old(keep=folder)
        missing = [dtype for dtype, path in wanted.items() if not path.is_dir()]
        if missing:
            convert(model, folder, missing, name=name)
    return wanted


def convert(model: Path, out: Path, dtypes: Iterable[str], *, name: str) -> None:
    """`rkconvert MODEL -o OUT --name NAME --dtype …` as a user runs it."""
    program = [sys.executable, "-c", "from rkconvert.cli import main; main()", str(model), "-o", str(out)]
    chosen = [argument for dtype in dtypes for argument in ("--dtype", dtype)]
    done = subprocess.run([*program, "--name", name, *chosen], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _key(model: Path) -> str:
    """Changes with whatever a bundle is made from: converter, core, quantiser and model."""
    digest = hashlib.sha256()
    sources = sorted([*(ROOT / "convert").rglob("*.py"), *(ROOT / "rk3588").glob("*.py")])
    for path in [*sources, Path(hostlib.library()._name)]:
        digest.update(path.read_bytes())
    digest.update(f"{model.stat().st_size} {model.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _alone() -> Iterator[None]:
    """Only one process converts at a time; the others then find the bundles there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_old(*, keep: Path) -> None:
    for path in CACHE.glob("smollm2-*"):
        if path != keep and time.time() - path.stat().st_mtime > _DAY:
            shutil.rmtree(path)
