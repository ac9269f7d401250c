"""What was given for a bundle and is none: said with what it is, and what was likely meant."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from .nearest import closest

_LOOKED_AT = 1000  # entries of a folder that a bundle may have been meant among


def no_bundle(folder: Path, manifest: str) -> str:
    """What ``folder``, which has no ``manifest``, is instead of a bundle, and what to do."""
    if "\0" in str(folder) or len(str(folder)) > 4000:
        return f"{str(folder)[:100]!r} cannot be the path of a bundle: give a folder that rkconvert wrote"
    if not os.path.lexists(folder):
        near = closest(folder.name, bundles_in(folder.parent, manifest))
        advice = f"did you mean {folder.parent / near}?" if near else "give a folder that rkconvert wrote"
        return f"there is no {folder}: {advice}"
    if not folder.is_dir():
        return _file(folder, manifest)
    if inside := sorted(bundles_in(folder, manifest)):
        return f"{folder} is a folder with bundles: give one of them: {listed(inside)}"
    if (folder / "config.json").exists() or any(folder.glob("*.gguf")):
        return f"{folder} is not a bundle but a model to make one from: rkconvert {folder} -o out"
    return f"{folder} is not a bundle: it has no {manifest} (rkconvert writes one)"


def _file(path: Path, manifest: str) -> str:
    if (path.parent / manifest).is_file():
        return f"{path} is a file of a bundle: give the bundle, which is its folder: {path.parent}"
    if path.suffix.lower() == ".gguf":
        return f"{path} is not a bundle but a model to make one from: rkconvert {path} -o out"
    if path.suffix.lower() == ".rkllm":
        return f"{path} is a .rkllm alone: give a bundle, which `rk3588 adopt {path} --base MODEL` makes of it"
    return f"{path} is a file and not a bundle: give a folder that rkconvert wrote"


def bundles_in(folder: Path, manifest: str) -> list[str]:
    """Names of the bundles in ``folder``, as far as it is sensible to look."""
    try:
        with os.scandir(folder) as found:
            entries = list(itertools.islice(found, _LOOKED_AT))
    except OSError:
        return []
    return [entry.name for entry in entries if (folder / entry.name / manifest).is_file()]


def listed(names: list[str], most: int = 8) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
