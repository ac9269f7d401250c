"""What is to be on the board: one release, named by its content. Pure but for reading the files it is made of.

A release is everything the daemon needs: the bundle, the daemon, both libraries, configuration, units, and the agent
that can switch to it. So a switch of one symlink is a switch of everything, and so is the way back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .agent_zip import agent_zip
from .facts import Facts
from .layout import USER
from .programs import check_daemon, read_for_board
from .release_bundle import bundle_files, model_of
from .release_files import File, from_host, from_text
from .release_spec import ReleaseSpec
from .sizes import load_seconds
from .units import configuration, daemon_command, service_files, udev_rule


@dataclass(frozen=True)
class Release:
    """Files and manifest (``release.json``) of one release; ``rule`` is the udev rule that goes with it ("": none)."""

    id: str
    manifest: Mapping[str, Any]
    files: tuple[File, ...]
    rule: str

    @property
    def text(self) -> str:
        return json.dumps(self.manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def build(spec: ReleaseSpec, facts: Facts) -> Release:
    """The release for this board; DeployError or LibraryError in one sentence if there cannot be one."""
    simulated = spec.runtime is None
    model = model_of(spec.bundle, simulated)
    runtime_library = spec.runtime or spec.sim_runtime
    assert runtime_library is not None
    patience = spec.patience or load_seconds(model.stat().st_size)
    library = read_for_board(runtime_library, facts, "--sim-runtime" if simulated else "--runtime")
    counter = read_for_board(spec.sim_library, facts, "--sim-library")
    files = [
        *bundle_files(spec.bundle, simulated),
        from_host("rkchatd.pyz", spec.daemon),
        from_host("librkllmrt.so", library.path),
        from_host("librksim.so", counter.path),
        from_text("agent.pyz", agent_zip()),
        from_text("rkchatd.yaml", configuration(spec, facts)),
        *service_files(spec, facts, patience),
    ]
    check_daemon(spec.daemon)
    systemd = facts.systemd is not None
    manifest: dict[str, Any] = {
        "schema": 1,
        "name": spec.bundle.name,
        "dtype": spec.bundle.dtype,
        "runtime": "sim" if simulated else "npu",
        "runtime_version": library.version,
        "model_file": model.name,
        "listen": spec.listen,
        "port": spec.port,
        "pin": spec.pin,
        "settings": dict(spec.settings),
        "service": "systemd" if systemd else "process",
        "user": USER if systemd else facts.user,
        "load_seconds": patience,
        "command": daemon_command(spec, facts),
        "files": {file.path: {"sha256": file.sha256, "size": file.size, "mode": file.mode} for file in files},
    }
    name = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    return Release(name, {"id": name, **manifest}, tuple(files), udev_rule(facts) if systemd else "")
