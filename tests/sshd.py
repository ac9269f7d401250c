"""A real sshd on loopback, with its own configuration, keys and log: nothing of this machine's is touched."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from rk3588.simboard.preparing import new_key

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
MISSING = "" if os.access(SSHD, os.X_OK) else "no sshd here (Debian: openssh-server)"
_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/{host_key}
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Sshd:
    """A server and what a client needs to log in."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    host_key: str  # TYPE BASE64

    @property
    def key(self) -> Path:
        return self.folder / "id"

    @property
    def known(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.host_key}\n"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """The listener and every session of it; those above first, so that none of them can say that another ended."""
        for pid in [self.process.pid, *reversed(descendants(self.process.pid))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def descendants(pid: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [one for child in children for one in [*descendants(child), child]]


def start(folder: Path, *extra: str, port: int | None = None, host_key: str = "host_ed25519") -> Sshd:
    """A running sshd; ``extra`` are lines of its configuration, put before the others."""
    folder.mkdir(exist_ok=True)
    for name in ("id", "host_ed25519"):
        if not (folder / name).exists():
            new_key(folder / name)
    if not (folder / host_key).exists():
        kind = host_key.removeprefix("host_")
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(folder / host_key)], check=True)
    public = " ".join((folder / f"{host_key}.pub").read_text().split()[:2])
    if not (folder / "authorized_keys").exists():
        shutil.copy(folder / "id.pub", folder / "authorized_keys")
    port = port or free_port()
    config = folder / "sshd_config"
    lines = "".join(line + "\n" for line in extra)
    config.write_text(lines + _CONFIG.format(folder=folder, port=port, host_key=host_key))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    command = [SSHD, "-D", "-f", str(config), "-E", str(folder / "log")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as probe:
                probe.settimeout(5)
                if probe.recv(4) == b"SSH-":
                    return Sshd(folder, port, process, public)
        except OSError:
            time.sleep(0.02)
    process.kill()
    raise RuntimeError(f"sshd did not come up: {(folder / 'log').read_text()}")


USER = getpass.getuser()
