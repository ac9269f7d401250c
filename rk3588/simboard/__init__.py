"""Simulated boards: an SSH server with the device tree of an RK3588 board, to try and to test deployments with.

``server``: needs no root; a process with paramiko's server mode, its own home folder and a faked tree of /sys and /dev.
``nspawn``: needs root; a container with a real systemd and OpenSSH in a network of its own.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rk3588.boards import NAME


@dataclass(frozen=True)
class SimBoard:
    """One that is up. ``ssh``: how to reach it, as fields of ``deploy.ssh.config.Destination``."""

    folder: Path
    kind: str
    pid: int
    ssh: dict[str, Any]


def boards_folder() -> Path:
    """Where simulated boards are kept."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "rk3588" / "boards"


def find(name: str) -> SimBoard | None:
    """The simulated board of this name, if it is up."""
    folder = boards_folder() / name
    if not NAME.fullmatch(name):
        return None
    try:
        said = json.loads((folder / "board.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = tuple(Path(path) for path in said["known_hosts"])
    ssh = {
        "name": name,
        "address": said["address"],
        "port": said["port"],
        "user": said["user"],
        "keys": (Path(said["key"]),),
        "only_these_keys": True,
        "jumps": (),
        "proxy_command": None,
        "known_hosts": files,
        "hash_names": False,
        "key_alias": None,
        "connect_timeout": 15.0,
        "openssh": (
            *("-i", said["key"], "-o", f"UserKnownHostsFile={files[0]}", "-p", str(said["port"])),
            f"{said['user']}@{said['address']}",
        ),
    }
    return SimBoard(folder, said["kind"], said["pid"], ssh)


def place_of(folder: Path) -> Path:
    """Where the board of ``folder`` really has its home, tree and keys: there, unless its path is not fit for it."""
    tree = folder / "tree"
    return tree.readlink().parent if tree.is_symlink() else folder


def running() -> list[SimBoard]:
    """Those that run, by name."""
    names = sorted(path.parent.name for path in boards_folder().glob("*/board.json"))
    return [board for name in names if (board := find(name)) and is_alive(board.pid)]


def is_alive(pid: int) -> bool:
    """Whether the process is there and not only waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def write_description(folder: Path, kind: str, pid: int, address: str, port: int, user: str, host_key: str) -> None:
    """Describe a board that is up, so that ``find`` finds it. ``host_key``: ``TYPE BASE64``."""
    place = place_of(folder)
    known = place / "known_hosts"
    name = address if port == 22 else f"[{address}]:{port}"
    known.write_text(f"{name} {host_key}\n", encoding="utf-8")
    said = {
        "kind": kind,
        "pid": pid,
        "address": address,
        "port": port,
        "user": user,
        "key": str(place / "id"),
        "known_hosts": [str(known)],
    }
    temporary = folder / "board.json.new"
    temporary.write_text(json.dumps(said), encoding="utf-8")
    temporary.replace(folder / "board.json")
