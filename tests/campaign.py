"""Faults in the middle of a deployment, at random moments, to a board with a real systemd and OpenSSH.

A round: a deployment begins, something happens to it, and then: a service answers on the board, what the deployer said
is one clear sentence, the next run succeeds, and nothing is left over. ``python -m tests.campaign [ROUNDS] [SEED]``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rk3588 import simboard
from rk3588.boards import catalogue
from rk3588.deploy.ssh import config, connection
from rk3588.simboard import nspawn
from rk3588.simboard.control import down, new_key
from tests import deploying
from tests.deploying import Deployer

SIZE = 3_000_000
LONGEST = 2.2  # seconds from the start of a deployment to the latest fault
_ASK = """
import json, sys, urllib.request
key = open('/opt/rkchatd/keys').read().strip().rpartition(':')[2]
asked = json.dumps({'messages': [{'role': 'user', 'content': 'Hello'}], 'max_tokens': 2}).encode()
headers = {'Authorization': 'Bearer ' + key, 'Content-Type': 'application/json'}
request = urllib.request.Request('http://127.0.0.1:8080/v1/chat/completions', asked, headers)
print(json.load(urllib.request.urlopen(request, timeout=30))['choices'][0]['message']['content'])
"""


@dataclass
class Scene:
    """The board, and the deployer that talks to it."""

    board: simboard.SimBoard
    deployer: Deployer
    folder: Path
    chance: random.Random
    bundles: list[Path] = field(default_factory=list)

    @property
    def disk(self) -> Path:
        """The board's /opt."""
        return self.board.folder / "disk"

    @property
    def current(self) -> str:
        """The model of the release that is current."""
        return str(json.loads((self.disk / "rkchatd" / "current" / "release.json").read_text())["name"])

    @property
    def leader(self) -> int:
        """The board's PID 1, as this machine numbers it."""
        container = int((self.board.folder / "nspawn.pid").read_text())
        return int(Path(f"/proc/{container}/task/{container}/children").read_text().split()[0])

    def inside(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the board, past SSH."""
        command = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", *words]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)

    def answer(self, seconds: float = 60.0) -> str:
        """What the daemon says, asked on the board itself; waits until one does."""
        deadline = time.monotonic() + seconds
        said = ""
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, IndexError, subprocess.TimeoutExpired):
                done = self.inside("python3", "-c", _ASK)
                if done.returncode == 0:
                    return done.stdout.strip()
                said = done.stderr[-300:]
            time.sleep(0.2)
        raise AssertionError(f"nothing answers on the board: {said}")

    def new_bundle(self, behaviour: str = "") -> Path:
        """Another bundle, unlike all before."""
        if len(self.bundles) > 3:
            shutil.rmtree(self.bundles.pop(0))
        name = f"m{self.chance.randrange(1 << 40):010x}"
        self.bundles.append(deploying.bundle(self.folder, name, behaviour, SIZE))
        return self.bundles[-1]

    def moment(self) -> float:
        return self.chance.uniform(0.1, LONGEST)

    def run(self, command: str) -> str:
        with connection.connect(config.Target(**self.board.ssh), lambda _: None, lambda _: False) as board:
            return board.run(command, root=True).text


@contextlib.contextmanager
def scene(folder: Path, seed: int) -> Iterator[Scene]:
    """A board of its own, with a first release on it. ``XDG_STATE_HOME`` says where boards are kept."""
    name = f"campaign{seed}"
    folder.mkdir(exist_ok=True)
    board = nspawn.up(name, catalogue().board("orange-pi-5-plus"), disk=256 << 20)
    try:
        settings = folder / "ssh_config"
        settings.write_text(
            f"Host *\n  IdentityFile {board.folder}/id\n  IdentitiesOnly yes\n  ServerAliveInterval 1\n"
            f"  ServerAliveCountMax 3\n  ConnectTimeout 3\n  UserKnownHostsFile {board.folder}/known_hosts\n"
        )
        host = f"{board.ssh['user']}@{board.ssh['address']}"
        deployer = Deployer(host, deploying.standin(folder), simboard.home().parents[1], ("--ssh-config", settings))
        made = Scene(board, deployer, folder, random.Random(seed))
        deployer.deploy(made.new_bundle(), "--patience", 30)
        yield made
    finally:
        down(name)


# ---------------------------------------------------------------------------------------------------------- faults
# Each does its harm while ``process`` is deploying, and returns how it is put right again.

Fault = Callable[[Scene, "subprocess.Popen[str]"], Callable[[], None]]


def nothing() -> None:
    pass


def link_down(scene: Scene, _process: subprocess.Popen[str]) -> Callable[[], None]:
    time.sleep(scene.moment())
    nspawn.link(scene.board, "down")
    return lambda: nspawn.link(scene.board, "up")


def sshd_killed(scene: Scene, _process: subprocess.Popen[str]) -> Callable[[], None]:
    time.sleep(scene.moment())
    scene.inside("pkill", "-KILL", "-x", "sshd")
    return lambda: nspawn.wait_for_ssh(str(scene.board.ssh["address"]))


def disk_full(scene: Scene, _process: subprocess.Popen[str]) -> Callable[[], None]:
    time.sleep(scene.moment())
    filler = scene.disk / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    return filler.unlink


def rebooted(scene: Scene, _process: subprocess.Popen[str]) -> Callable[[], None]:
    time.sleep(scene.moment())
    reboot(scene)
    return lambda: nspawn.wait_for_ssh(str(scene.board.ssh["address"]))


def reboot(scene: Scene) -> None:
    """At once, without a shutdown: as when the supply fails."""
    before = scene.leader
    scene.inside("systemctl", "--force", "--force", "reboot")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, IndexError, ValueError):  # not quite there yet
            if scene.leader != before:
                return
        time.sleep(0.05)


def deployer_killed(scene: Scene, process: subprocess.Popen[str]) -> Callable[[], None]:
    time.sleep(scene.moment())
    process.send_signal(signal.SIGKILL)
    return nothing


def remote_file_changed(scene: Scene, process: subprocess.Popen[str]) -> Callable[[], None]:
    """A byte of a file that has come, or of half a one, turns over."""
    time.sleep(scene.moment() / 4)
    while process.poll() is None:
        files = [path for path in scene.disk.glob("rkchatd/incoming/*/**/*") if path.is_file()]
        if files:
            victim = scene.chance.choice(files)
            with contextlib.suppress(OSError), victim.open("r+b") as file:
                middle = file.seek(0, os.SEEK_END) // 2
                file.seek(middle)
                byte = file.read(1) or b"x"
                file.seek(middle)
                file.write(bytes([byte[0] ^ 0x40]))
                break
        time.sleep(0.01)
    return nothing


def host_key_changed(scene: Scene, process: subprocess.Popen[str]) -> Callable[[], None]:
    """The deployment that was going on may end well; the next one must not begin."""
    time.sleep(scene.moment())
    key = scene.board.folder / "root" / "etc" / "ssh" / "ssh_host_ed25519_key"
    kept = {path: path.read_bytes() for path in (key, key.with_suffix(".pub"))}
    key.unlink()
    new_key(key)
    scene.inside("systemctl", "restart", "ssh")
    process.wait(120)
    said = scene.deployer.fail(scene.bundles[-1])
    assert "has CHANGED" in said, said

    def heal() -> None:
        for path, data in kept.items():
            path.write_bytes(data)
        scene.inside("systemctl", "restart", "ssh")

    return heal


def only_wait(_scene: Scene, process: subprocess.Popen[str]) -> Callable[[], None]:
    process.wait(180)
    return nothing


def clock_jumps(scene: Scene, process: subprocess.Popen[str]) -> Callable[[], None]:
    """By two years, forth or back, for all that runs on the board from now on: `date`, and Python's clock."""
    time.sleep(scene.moment())
    sign = scene.chance.choice("+-")
    root = scene.board.folder / "root"
    date = root / "usr" / "local" / "bin" / "date"
    date.write_text(f'#!/bin/sh\nexec /usr/bin/date -d "{sign}2 years" "$@"\n')
    date.chmod(0o755)
    (clock,) = root.glob("etc/python3.*/sitecustomize.py")
    kept = clock.read_text()
    clock.write_text(f"import time\n_now = time.time\ntime.time = lambda: _now() {sign} 63072000\n")
    process.wait(120)
    doctor = scene.deployer.run("doctor", scene.deployer.board, *scene.deployer.reach, "--runtime", "sim").stdout
    assert f"the clock is 2.0 years {'ahead' if sign == '+' else 'behind'}" in doctor, doctor
    scene.deployer.deploy(scene.new_bundle(), "--patience", 30)

    def heal() -> None:
        date.unlink()
        clock.write_text(kept)

    return heal


@dataclass(frozen=True)
class Kind:
    """A fault; ``behaviour`` of the daemon that is deployed, ``says``: what a deployer that fails has to say."""

    fault: Fault
    says: str
    behaviour: str = ""


LOST = r"the link to .* was lost|cannot reach|does not (answer|start|speak)|took no data|gave no answer"
KINDS = {
    "link down": Kind(link_down, LOST),
    "sshd killed": Kind(sshd_killed, LOST),
    "disk full": Kind(disk_full, r"No space left on device|needed to send it"),
    "board rebooted": Kind(rebooted, LOST),
    "deployer killed": Kind(deployer_killed, r"^$"),
    "remote file changed": Kind(remote_file_changed, r"was changed on the board|is not what was announced"),
    "never ready": Kind(only_wait, r"did not prove itself: not ready after 2 s .*is back and answers", "never"),
    "lies at init": Kind(only_wait, r"did not prove itself: a chat was answered with 500.*is back and answers", "lie"),
    "host key changed": Kind(host_key_changed, r"has CHANGED|the link to .* was lost|cannot reach"),
    "clock two years off": Kind(clock_jumps, r"^$"),
}


def round_of(scene: Scene, name: str) -> str:
    """One round; returns what happened in a word. AssertionError with what was not as it must be."""
    kind = KINDS[name]
    before = scene.answer()
    assert before == f"{scene.current} here"
    wanted = scene.new_bundle(kind.behaviour)
    patience = 2 if kind.behaviour else 30
    process = scene.deployer.start(wanted, "--patience", patience, "--limit-rate", "8M")
    try:
        heal = kind.fault(scene, process)
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
        with process:  # closes its pipes
            pass
    assert "Traceback" not in err, err
    # The cable is still out here, the disk still full: something answers all the same, unless the board is starting.
    serving = scene.answer()
    assert serving in (before, *(f"{bundle.name} here" for bundle in scene.bundles)), serving
    if kind.behaviour:
        assert serving == before
    if process.returncode > 0:
        assert re.search(kind.says, err, re.DOTALL), f"{name} said: {err}"
    elif process.returncode == 0:
        assert json.loads(out)[0]["healthy"]
        assert not kind.behaviour
    heal()
    recover(scene, wanted if not kind.behaviour else scene.new_bundle())
    return {0: "came too late"}.get(process.returncode, "struck")


def recover(scene: Scene, wanted: Path) -> None:
    """The next run succeeds and leaves nothing over."""
    scene.deployer.deploy(wanted, "--patience", 30)
    assert scene.answer() == f"{wanted.name} here"
    prefix = scene.disk / "rkchatd"
    assert {path.name for path in prefix.iterdir()} == {"releases", "incoming", "current", "keys", "activation.log"}
    assert list((prefix / "incoming").iterdir()) == []
    assert scene.current == wanted.name
    releases = list((prefix / "releases").iterdir())
    assert len(releases) <= 3
    assert all((path / ".proven").exists() for path in releases), releases
    assert not list(prefix.rglob("*.part"))
    assert not list(prefix.rglob("*.new"))
    daemons = scene.inside("pgrep", "-fc", "[r]kchatd.pyz").stdout.strip()
    assert daemons == "1", daemons
    # Nothing to do any more: so all files of all releases are what they were.
    words = scene.deployer.words(wanted, "--patience", 30, "--plan")
    (planned,) = json.loads(scene.deployer.run(*words).stdout)
    assert planned["steps"] == [], planned["steps"]


def main(rounds: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_STATE_HOME"] = name
        with scene(Path(name) / "scene", seed) as stage:
            for number in range(rounds):
                for kind in KINDS:
                    started = time.monotonic()
                    struck = round_of(stage, kind)
                    print(f"{number + 1}/{rounds} {kind}: {struck}, {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main(*(int(word) for word in [*sys.argv[1:], *("20", "1")[len(sys.argv) - 1 :]]))
