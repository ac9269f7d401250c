"""What a measurement has found so far, so that a second call goes on where the first was stopped.

A folder of the user's cache, named by the hash of all that the figures depend on; one file for each window. It goes
when the measurement is through, and after a month in any case.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_OLDEST_S = 30 * 86400
Arrays = dict[str, npt.NDArray[Any]]


class Store:
    """What cannot be written is not kept: measuring goes on without."""

    def __init__(self, facts: Any, above: Path | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        self._above = above or cache / "rk3588" / "accuracy"
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        self._folder = self._above / hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._forget_old()

    def get(self, name: str, **shapes: tuple[int, ...]) -> Arrays | None:
        """The arrays of these names and shapes that were kept as ``name``."""
        try:
            with np.load(self._folder / f"{name}.npz", allow_pickle=False) as file:
                found = {key: file[key] for key in shapes}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return found if all(found[key].shape == shape for key, shape in shapes.items()) else None

    def put(self, name: str, **arrays: npt.NDArray[Any]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            fd, part = tempfile.mkstemp(dir=self._folder, suffix=".part")
            with os.fdopen(fd, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            Path(part).replace(self._folder / f"{name}.npz")
        except OSError:
            return

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _forget_old(self) -> None:
        oldest = time.time() - _OLDEST_S
        for folder in self._above.glob("?" * 32):
            try:
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)
            except OSError:
                continue
