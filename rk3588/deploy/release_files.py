"""One file of a release: made here, or lying on this host."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from rk3588 import bundle as bundles
from rk3588.errors import DeployError


@dataclass(frozen=True)
class File:
    """One file of a release: its path there, and where its bytes are."""

    path: str
    source: Union[Path, bytes]
    size: int
    sha256: str
    mode: int = 0o644


def from_host(path: str, source: Path) -> File:
    """One that is a file of this host; DeployError where that cannot be read."""
    try:
        return File(path, source, source.stat().st_size, bundles.sha256(source))
    except OSError as error:
        raise DeployError(f"cannot read {source}: {error.strerror}") from error


def from_text(path: str, content: Union[str, bytes], mode: int = 0o644) -> File:
    data = content.encode() if isinstance(content, str) else content
    return File(path, data, len(data), hashlib.sha256(data).hexdigest(), mode)
