"""Uploads beside scp and rsync, on the same link to the same sshd: ``python -m tests.bench.upload [MB] [ROUNDS]``.

One interleaved run; medians. The link is loopback and the target a RAM disk where there is one, so that the programs
are compared; a gigabit link carries 117 MB/s, whatever sends. Ours hashes on the board and syncs, scp does neither.
Then a transfer is cut off in the middle and resumed: what goes over the wire twice is counted. At last the file is the
model of a bundle and `rk3588 deploy` brings it there, all of it, twice.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rk3588 import bundle
from rk3588.boards import catalogue
from rk3588.deploy import transfer
from rk3588.deploy.release_files import File
from rk3588.deploy.ssh import config, connection
from rk3588.deploy.steps import Send
from rk3588.simboard import control, tree
from tests import deploying, sshd

RAM = Path("/dev/shm")
BUILD = Path(__file__).resolve().parent.parent.parent / "build"


def target(server: sshd.Sshd) -> config.Destination:
    known = server.folder / "known_hosts"
    known.write_text(server.known)
    return config.Destination(
        "bench", "127.0.0.1", server.port, sshd.USER, (server.key,), True, (), None, (known,), False, None, 10.0
    )


def ours(server: sshd.Sshd, step: Send, cut_at: int | None = None) -> int:
    """Send; returns the bytes that went over the wire. ``cut_at``: the link breaks after so many."""
    with connection.connect(target(server), lambda _: None, lambda *_: False) as board:
        sent = 0

        def progress(size: int) -> None:
            nonlocal sent
            sent += size
            if cut_at is not None and sent >= cut_at:
                board.transport.sock.close()

        sender = transfer.Sender(board, transfer.Throttle(None), progress)
        try:
            count = sender.send(step)
        except Exception:
            if cut_at is None:
                raise
            return sent
        sender.close()
        return count


def options(server: sshd.Sshd, port: str) -> list[str]:
    chosen = ["-o", f"UserKnownHostsFile={server.folder}/known_hosts", "-o", "IdentitiesOnly=yes"]
    return [port, str(server.port), "-i", str(server.key), *chosen]


def scp(server: sshd.Sshd, source: Path, place: Path) -> None:
    command = ["scp", "-q", *options(server, "-P"), str(source), f"{sshd.USER}@127.0.0.1:{place}"]
    subprocess.run(command, check=True)


def rsync(server: sshd.Sshd, source: Path, place: Path) -> None:
    shell = " ".join(["ssh", *options(server, "-p")])
    subprocess.run(["rsync", "-W", "-e", shell, str(source), f"{sshd.USER}@127.0.0.1:{place}"], check=True)


def main(megabytes: int, rounds: int) -> None:
    size = megabytes * 1_000_000
    BUILD.mkdir(exist_ok=True)
    ram = RAM if RAM.is_dir() else None
    # The deployment's board lies on a disk: one whose files would be gone after a reboot is refused.
    with tempfile.TemporaryDirectory(dir=ram) as name, tempfile.TemporaryDirectory(dir=BUILD) as disk:
        folder, board = Path(name), Path(disk)
        source, place = folder / "model", folder / "there"
        chance = random.Random(1)
        with source.open("wb") as file:
            for _ in range(megabytes):
                file.write(chance.randbytes(1_000_000))
        step = Send(File("model", source, size, bundle.sha256(source)), str(place), root=False)
        (board / "home").mkdir()
        # For the deployment: a board of its own without systemd, so that nothing of this machine is touched.
        tree.write_all(board / "tree", catalogue().board("rock-5b"))
        server = sshd.start(folder / "sshd", f"SetEnv RKBOARD_SYSROOT={board}/tree HOME={board}/home")
        try:
            compare(server, step, source, place, size, rounds)
            resume(server, step, place, size, rounds)
            place.unlink()
            deploy(server, folder, source)
        finally:
            server.stop()
            for pid in control.processes_of_board(board):
                os.kill(pid, signal.SIGKILL)


def compare(server: sshd.Sshd, step: Send, source: Path, place: Path, size: int, rounds: int) -> None:
    peers: dict[str, Callable[[], object]] = {"rk3588": lambda: ours(server, step)}
    if shutil.which("scp"):
        peers["scp"] = lambda: scp(server, source, place)
    if shutil.which("rsync"):
        peers["rsync -W"] = lambda: rsync(server, source, place)
    target(server)
    rates: dict[str, list[float]] = {peer: [] for peer in peers}
    for _ in range(rounds):
        for peer, send in peers.items():
            place.unlink(missing_ok=True)
            started = time.perf_counter()
            send()
            rates[peer].append(size / 1e6 / (time.perf_counter() - started))
            assert place.stat().st_size == size
    print(f"{size / 1e6:.0f} MB, medians of {rounds} interleaved, load {os.getloadavg()[0]:.1f}")
    scp_rate = statistics.median(rates["scp"]) if "scp" in rates else float("nan")
    for peer, found in rates.items():
        median = statistics.median(found)
        span = f"({min(found):.0f} to {max(found):.0f})"
        print(f"{peer:<10} {median:7.1f} MB/s  {median / scp_rate:5.2f}x of scp  {span}")


def resume(server: sshd.Sshd, step: Send, place: Path, size: int, rounds: int) -> None:
    twice = []
    chance = random.Random(2)
    for _ in range(rounds):
        place.unlink(missing_ok=True)
        first = ours(server, step, chance.randrange(size // 10, size))
        deadline = time.monotonic() + 60
        while True:
            try:
                second = ours(server, step)
                break
            except Exception:
                # The other end still takes what was under way.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        twice.append(first + second - size)
    print(f"cut off and resumed {rounds} times: sent twice {max(twice) / 1e6:.1f} MB at the most")


def deploy(server: sshd.Sshd, folder: Path, source: Path) -> None:
    """The whole command, twice: facts, libraries and daemon, hashing from the disk, a proof."""
    settings = folder / "ssh_config"
    settings.write_text(f"Host *\n  IdentityFile {server.key}\n  UserKnownHostsFile {server.folder}/known_hosts\n")
    board = f"{sshd.USER}@127.0.0.1:{server.port}"
    reach = ("--ssh-config", settings, "--port", sshd.free_port())
    deployer = deploying.Deployer(board, deploying.standin(folder), folder, reach)
    made = deploying.bundle(folder, "bench", source=source)
    for what in ("deploy", "again"):
        started = time.perf_counter()
        row = deployer.deploy(made)
        seconds = time.perf_counter() - started
        print(f"{what:<10} {row['bytes_sent']} bytes sent, {row['commands']} changing commands, {seconds:.1f} s")


if __name__ == "__main__":
    main(*(int(word) for word in [*sys.argv[1:], *("1000", "5")[len(sys.argv) - 1 :]]))
