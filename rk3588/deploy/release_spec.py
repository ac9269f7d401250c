"""What the user asks for: the parts of a release, and how the daemon is to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from rk3588.bundle import Bundle

from .layout import LOOPBACK, PORT, PREFIX


@dataclass(frozen=True)
class ReleaseSpec:
    """What the user asks for. ``runtime``: Rockchip's library, or None for the simulated one."""

    bundle: Bundle
    daemon: Path
    runtime: Optional[Path]
    sim_library: Path
    sim_runtime: Optional[Path] = None
    listen: str = LOOPBACK
    port: int = PORT
    pin: bool = True
    patience: Optional[int] = None  # seconds until it has to answer; None: by the model's size
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the daemon, beside those that are ours
    prefix: str = PREFIX
