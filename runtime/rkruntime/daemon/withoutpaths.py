"""Texts for those who have shown no key, who need not know where things lie on this machine."""

from __future__ import annotations

import re
from typing import Any

from .config import Config

_PATH = re.compile(r"(?<![\w/:])(?:~|\.{1,2})?/(?!/)[^\s'\"`,;()<>]*|(?<=:)/(?!/)[^\s'\"`,;()<>]*")


def without_paths_in(told: Any, config: Config) -> Any:
    """An error's body, whose texts are ``without_paths``."""
    if isinstance(told, dict):
        return {key: without_paths_in(value, config) for key, value in told.items()}
    return without_paths(told, config) if isinstance(told, str) else told


def without_paths(text: str, config: Config) -> str:
    """``text`` with the last parts of paths only: for those who have shown no key, who need not know this machine."""
    given = (config.bundle, config.model.library, config.sim_library, config.state_dir, config.keys)
    known = {path for one in given if one is not None for path in (one, one.absolute(), one.resolve())}
    for path in sorted(known, key=lambda path: -len(str(path))):
        if len(path.parts) > 1:
            text = text.replace(str(path), path.name)
    return _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], text)
