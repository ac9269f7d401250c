"""Remembers loads that were begun and never ended: a model that took the daemon down twice is not loaded again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Optional

from rk3588.bundle import Bundle

LIMIT = 2
FILE = "unfinished-loads.json"


class LoadGuard:
    """Counts, by model, the loads that neither succeeded nor said why not. On disk, since the whole board may go down.

    With ``folder`` None it remembers as long as the process lives. A folder that cannot be written to does the same.
    """

    def __init__(self, model: str, folder: Optional[Path]) -> None:
        self._model = model
        self.path = folder / FILE if folder else None
        self._counts = self._read()

    @property
    def gives_up(self) -> bool:
        """Whether this model has ended its process too often to be loaded again."""
        return self._counts.get(self._model, 0) >= LIMIT

    def begin(self) -> None:
        """A load begins: until ``end`` it counts as one that never came back."""
        self._counts[self._model] = self._counts.get(self._model, 0) + 1
        self._write()

    def end(self) -> None:
        """The load succeeded, was refused with a reason, or was called off."""
        if self._counts.pop(self._model, None):
            self._write()

    def _read(self) -> dict[str, int]:
        if self.path is None:
            return {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return {str(key): int(value) for key, value in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # none yet, or half of one: begin anew

    def _write(self) -> None:
        if self.path is None:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            with part.open("w", encoding="utf-8") as file:
                json.dump(self._counts, file)
                file.flush()
                os.fsync(file.fileno())  # before the load: the board may be gone in a moment
            part.replace(self.path)


def identity(bundle: Bundle) -> str:
    """Names a bundle's contents: another conversion of the same model is another model here."""
    digest = hashlib.sha256()
    for entry in bundle.manifest["files"]:
        digest.update(f"{entry['path']} {entry['sha256']}\n".encode())
    return f"{bundle.name} {bundle.dtype} {digest.hexdigest()[:16]}"
