"""A simulated board with a real systemd and OpenSSH: systemd-nspawn over an image of Debian. Needs root.

Each board is an overlay over one image, with a disk of its own at /opt, and lives in a network namespace tied to this
machine by a veth pair and nothing else. The image is built once by mmdebstrap and kept by its recipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rk3588.boards import BoardType
from rk3588.errors import BoardError, UsageError
from rk3588.resources import source_tree

from . import SimBoard, find, is_alive, tree, write_description
from .preparing import new_key, prepare

Progress = Callable[[str], None]

USER = "board"
DISK = 32 << 30  # sparse
_PACKAGES = "systemd,systemd-sysv,udev,dbus,libpam-systemd,openssh-server,python3,sudo,iproute2,procps,rsync"
# sudo without a password for the board's user, as on vendors' images; no units that need what a container has not.
_SETUP = """
useradd --create-home --shell /bin/bash --groups sudo,video board
usermod -p '*' board
echo 'board ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/board && chmod 440 /etc/sudoers.d/board
rm -f /etc/ssh/ssh_host_* /etc/machine-id && touch /etc/machine-id
mkdir -p /var/log/journal
systemctl mask systemd-udevd.service systemd-timesyncd.service getty.target console-getty.service >/dev/null 2>&1
"""
_RELEASE = "bookworm"
_NEEDED = ("systemd-nspawn", "ip", "mount", "mkfs.ext4")
_UP_SECONDS = 60.0
_SHUT_DOWN, _WITHOUT_LOG = 0x8004587D, 2  # of <linux/ext4.h>: EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
# nspawn ends with 133 when the board reboots. While there is a file `cut`, there is no power.
_LOOP = """
echo $$ > "$1/loop.pid"
while :; do
  systemd-nspawn -q -D "$1/root" --boot --register=no --keep-unit --machine="$3" --hostname="$2" \
    --network-namespace-path="/run/netns/$3" --console=pipe --link-journal=no --resolv-conf=off --timezone=off \
    --bind="$1/disk:/opt" --bind-ro="$1/firmware:/sys/firmware" --bind-ro="$1/debug:/sys/kernel/debug" \
    --kill-signal=SIGRTMIN+3 &
  echo $! > "$1/nspawn.pid"; wait $!; [ $? = 133 ] || [ -e "$1/cut" ] || exit
  while [ -e "$1/cut" ]; do sleep 0.05; done
done
"""


def why_unavailable() -> str:
    """Why such a board cannot be had here; "" if it can."""
    if os.geteuid() != 0:
        return "a board with systemd needs root"
    lacking = [program for program in _NEEDED if not shutil.which(program)]
    if not image().is_dir() and not shutil.which("mmdebstrap"):
        lacking.append("mmdebstrap")
    if lacking:
        packages = "systemd-container mmdebstrap iproute2 e2fsprogs"
        return f"{', '.join(lacking)} not found: on Debian, apt-get install {packages}"
    return ""


def cache() -> Path:
    """Where images are kept: build/ of a source tree, else the user's cache."""
    top = source_tree()
    if top:
        return top / "build"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rk3588"


def image() -> Path:
    recipe = hashlib.sha256(f"{_RELEASE}\n{_PACKAGES}\n{_SETUP}".encode()).hexdigest()[:12]
    return cache() / f"board-{recipe}"


def build(progress: Progress = lambda _: None) -> Path:
    """The image, built if it is not there (about a minute); BoardError with mmdebstrap's last words.

    ``progress`` is told what it is at.
    """
    folder = image()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "board.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        command = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={_PACKAGES}", _RELEASE, str(part)]
        progress("building its image, once: this takes a minute or two")
        _run_with_progress([*command, f'--customize-hook=chroot "$1" sh -ec {shlex.quote(_SETUP)}'], progress)
        part.rename(folder)
    return folder


def up(name: str, board: BoardType, disk: int = DISK, progress: Progress = lambda _: None) -> SimBoard:
    """A board with ``disk`` bytes at /opt, reachable when this returns; BoardError or UsageError otherwise."""
    reason = why_unavailable()
    if reason:
        raise UsageError(reason)
    lower = build(progress)
    folder = prepare(name)
    progress("starting it")
    try:
        return _start(name, folder, lower, board, disk)
    except BaseException:
        down(folder)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _start(name: str, folder: Path, lower: Path, board: BoardType, disk: int) -> SimBoard:
    for part in ("upper", "work", "root", "disk"):
        (folder / part).mkdir()
    tree.firmware(folder / "firmware", board)
    tree.debugfs(folder / "debug")
    overlay = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
    _run(["mount", "-t", "overlay", "rkboard", "-o", overlay, str(folder / "root")])
    with (folder / "disk.img").open("wb") as file:
        file.truncate(disk)
    _run(["mkfs.ext4", "-q", "-m", "0", str(folder / "disk.img")])
    _run(["mount", "-o", "loop", str(folder / "disk.img"), str(folder / "disk")])
    (folder / "disk" / "lost+found").rmdir()
    new_key(folder / "id")
    host_key = new_key(folder / "host_key")
    _configure_root(folder, name)
    address = _network(folder)
    with (folder / "console.log").open("wb") as log:
        command = ["setsid", "--fork", "bash", "-c", _LOOP, "board", str(folder), name, _namespace(folder)]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)
    wait_for_login(folder, address)
    write_description(folder, "nspawn", int((folder / "loop.pid").read_text()), address, 22, USER, host_key)
    found = find(name)
    assert found
    return found


def _configure_root(folder: Path, name: str) -> None:
    root = folder / "root"
    ssh = root / "etc" / "ssh"
    shutil.copy(folder / "host_key", ssh / "ssh_host_ed25519_key")
    shutil.copy(folder / "host_key.pub", ssh / "ssh_host_ed25519_key.pub")
    home = root / "home" / USER / ".ssh"
    home.mkdir(mode=0o700)
    shutil.copy(folder / "id.pub", home / "authorized_keys")
    for path in (home, home / "authorized_keys"):
        os.chown(path, 1000, 1000)
    (root / "etc" / "hostname").write_text(name + "\n")
    (root / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")  # sudo looks its own host up


def _namespace(folder: Path) -> str:
    return "rk" + hashlib.sha256(str(folder).encode()).hexdigest()[:8]


def _network(folder: Path) -> str:
    """A namespace with one end of a veth pair, a /30 that nothing here uses yet; returns the board's address."""
    space = _namespace(folder)
    start = int(hashlib.sha256(str(folder).encode()).hexdigest()[:6], 16)
    used = subprocess.run(["ip", "-o", "addr"], stdout=subprocess.PIPE, text=True).stdout
    for step in range(16384):
        number = (start + step) % 16384
        net = f"10.203.{number // 64}."
        low = number % 64 * 4
        if f"{net}{low + 1}/30" not in used:
            break
    _run(["ip", "netns", "add", space])
    _run(["ip", "link", "add", f"v{space}", "type", "veth", "peer", "name", "eth0", "netns", space])
    _run(["ip", "addr", "add", f"{net}{low + 1}/30", "dev", f"v{space}"])
    _run(["ip", "link", "set", f"v{space}", "up"])
    for words in (f"addr add {net}{low + 2}/30 dev eth0", "link set eth0 up", "link set lo up"):
        _run(["ip", "-n", space, *words.split()])
    return f"{net}{low + 2}"


def set_link(board: SimBoard, state: str) -> None:
    """Pull the cable (``down``) or put it back (``up``)."""
    _run(["ip", "link", "set", f"v{_namespace(board.folder)}", state])


def init_pid(folder: Path) -> int:
    """The board's PID 1, as this machine numbers it; OSError, IndexError or ValueError while there is none."""
    container = int((folder / "nspawn.pid").read_text())
    return int(Path(f"/proc/{container}/task/{container}/children").read_text().split()[0])


def power_cut(board: SimBoard) -> None:
    """Everything stops at once, and at /opt what was not on the disk yet is lost. The board starts again."""
    folder = board.folder
    container = int((folder / "nspawn.pid").read_text())
    (folder / "cut").touch()
    set_link(board, "down")  # nobody says goodbye
    os.kill(init_pid(folder), signal.SIGKILL)
    _wait_for_end_of(container, 30.0)
    disk = os.open(folder / "disk", os.O_RDONLY)
    fcntl.ioctl(disk, _SHUT_DOWN, struct.pack("I", _WITHOUT_LOG))
    os.close(disk)
    # A copy: some other namespace may still hold the old one, and mount would find it.
    _run(["cp", "--sparse=always", str(folder / "disk.img"), str(folder / "disk.new")])
    _run(["umount", "-l", str(folder / "disk")])
    (folder / "disk.new").replace(folder / "disk.img")
    _run(["mount", "-o", "loop", str(folder / "disk.img"), str(folder / "disk")])
    set_link(board, "up")
    (folder / "cut").unlink()


def wait_for_login(folder: Path, address: str) -> None:
    """Return when an SSH server greets and lets users in; BoardError when none does in time."""
    deadline = time.monotonic() + _UP_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, IndexError, ValueError):
            # While systemd starts, there is a file by which PAM turns everybody away but root.
            closed = Path(f"/proc/{init_pid(folder)}/root/run/nologin").exists()
            with socket.create_connection((address, 22), 1.0) as probe:
                probe.settimeout(2.0)
                if probe.recv(4) == b"SSH-" and not closed:
                    return
        time.sleep(0.1)
    said = (folder / "console.log").read_text(errors="replace").strip().splitlines()
    raise BoardError(f"the simulated board at {address} did not come up: {said[-1].strip() if said else 'no word'}")


def down(folder: Path) -> None:
    """End the container, its network and its overlay."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((folder / "loop.pid").read_text()), signal.SIGKILL)  # else it would start the board again
    with contextlib.suppress(OSError, ValueError):
        container = int((folder / "nspawn.pid").read_text())
        for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(container, number)
            _wait_for_end_of(container, seconds)
    quiet = subprocess.DEVNULL
    subprocess.run(["ip", "netns", "del", _namespace(folder)], stderr=quiet)
    subprocess.run(["ip", "link", "del", f"v{_namespace(folder)}"], stderr=quiet)
    for mount in (folder / "disk", folder / "root"):
        if mount.is_mount():
            subprocess.run(["umount", "-l", str(mount)], stderr=sys.stderr)


def _wait_for_end_of(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise BoardError(f"`{' '.join(command[:3])}` failed: {words[-1] if words else done.returncode}")


def _run_with_progress(command: list[str], progress: Progress) -> None:
    """Like ``_run``, telling each line that mmdebstrap marks as information."""
    said: deque[str] = deque(maxlen=1)
    quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=pipe, text=True, errors="replace") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("I: "):
                what = line[3:].strip().rstrip(".")
                progress("setting it up" if what.startswith("running --customize-hook") else what)
            if line.strip():
                said.append(line.strip())
    if process.returncode:
        raise BoardError(f"`{' '.join(command[:3])}` failed: {said[0] if said else process.returncode}")
