"""A board with a real systemd and OpenSSH for tests: seen from inside, past SSH, and from the deployer's side."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rk3588 import simboard
from rk3588.boards import catalogue
from rk3588.simboard import nspawn
from rk3588.simboard.control import down
from tests import deploying
from tests.deploying import Deployer

SIZE = 3_000_000  # bytes of a model
RATE = 4_000_000  # bytes/s at which it is sent when something is to happen: slow enough to be hit in the middle
PATIENCE = 30  # seconds until a daemon has to answer
_ASK = """
import json, sys, urllib.request
key = open('/opt/rkchatd/keys').read().strip().rpartition(':')[2]
asked = json.dumps({'messages': [{'role': 'user', 'content': 'Hello'}], 'max_tokens': 2}).encode()
headers = {'Authorization': 'Bearer ' + key, 'Content-Type': 'application/json'}
request = urllib.request.Request('http://127.0.0.1:8080/v1/chat/completions', asked, headers)
answer = json.load(urllib.request.urlopen(request, timeout=30))
print(json.dumps([answer['model'], answer['choices'][0]['message']['content']]))
"""


@dataclass
class Scene:
    """The board, and the deployer that talks to it. ``chance`` is what moments and choices are drawn from."""

    board: simboard.SimBoard
    deployer: Deployer
    folder: Path
    real: Path | None = None  # a bundle that the real daemon can serve; None: those of the stand-in
    chance: random.Random = field(default_factory=random.Random)
    bundles: list[Path] = field(default_factory=list)
    made: int = 0  # bundles so far
    lasts: float = 2.0  # seconds: a deployment at RATE that nothing happens to
    phase: str = ""  # where the deployment was when something happened to it

    @property
    def disk(self) -> Path:
        """The board's /opt."""
        return self.board.folder / "disk"

    @property
    def prefix(self) -> Path:
        return self.disk / "rkchatd"

    @property
    def current(self) -> str:
        """The model of the release that is current."""
        return str(json.loads((self.prefix / "current" / "release.json").read_text())["name"])

    def inside(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the board, past SSH."""
        command = ["nsenter", "-t", str(nspawn.init_pid(self.board.folder)), "-m", "-u", "-i", "-n", "-p", *words]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)

    def processes(self, pattern: str) -> int:
        return int(self.inside("pgrep", "-fc", pattern).stdout)

    def answer(self) -> str:
        """What the daemon says, asked on the board itself; waits until one does."""
        return self._ask()[1]

    def serving(self) -> str:
        """The model that answers on the board; waits until one does."""
        return self._ask()[0]

    def _ask(self, seconds: float = 60.0) -> tuple[str, str]:
        deadline = time.monotonic() + seconds
        said = ""
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, IndexError, subprocess.TimeoutExpired):
                done = self.inside("python3", "-c", _ASK)
                if done.returncode == 0:
                    model, answer = json.loads(done.stdout)
                    return model, answer
                said = done.stderr[-300:]
            time.sleep(0.2)
        raise AssertionError(f"nothing answers on the board: {said}")

    def wait_until_up(self) -> None:
        nspawn.wait_for_login(self.board.folder, str(self.board.ssh["address"]))

    def new_bundle(self, behaviour: str = "") -> Path:
        """Another bundle, unlike all before."""
        if len(self.bundles) > 3:
            shutil.rmtree(self.bundles.pop(0))
        self.made += 1
        name = f"m{self.made}"
        if self.real:
            made = deploying.renamed(self.real, self.folder / name, SIZE)
        else:
            made = deploying.bundle(self.folder, name, behaviour, SIZE)
        self.bundles.append(made)
        return made

    def deploy(self, bundle: Path) -> None:
        """One that nothing happens to, as fast as it goes."""
        started = time.monotonic()
        row = self.deployer.deploy(bundle, "--patience", PATIENCE)
        if row["bytes_sent"] >= SIZE:
            self.lasts = time.monotonic() - started + SIZE / RATE

    def wait_for_a_moment(self, until: float = 1.1) -> None:
        """Some time between the start of a deployment and ``until``, in parts of what the last one took."""
        time.sleep(self.chance.uniform(0.15, until) * self.lasts)
        self.phase = self._phase()

    def _phase(self) -> str:
        if (self.prefix / "unproven.json").exists():
            return "while it proved itself"
        if any((self.prefix / "incoming").iterdir()):
            return "while files came"
        return "at the end" if self.current == self.bundles[-1].name else "before the first file"


@contextlib.contextmanager
def scene(folder: Path, name: str, daemon: Path | None = None, real: Path | None = None) -> Iterator[Scene]:
    """A board of its own with a first release on it; bundles go into ``folder``, boards where XDG_STATE_HOME says.

    ``daemon``, with a bundle for it: rkchatd.pyz; else the stand-in.
    """
    board = nspawn.up(name, catalogue().board("orange-pi-5-plus"), disk=256 << 20)
    try:
        settings = folder / "ssh_config"
        settings.write_text(
            f"Host *\n  IdentityFile {board.folder}/id\n  IdentitiesOnly yes\n  ServerAliveInterval 1\n"
            f"  ServerAliveCountMax 3\n  ConnectTimeout 3\n  UserKnownHostsFile {board.folder}/known_hosts\n"
        )
        host = f"{board.ssh['user']}@{board.ssh['address']}"
        daemon = daemon or deploying.standin(folder)
        deployer = Deployer(host, daemon, simboard.boards_folder().parents[1], ("--ssh-config", settings))
        made = Scene(board, deployer, folder, real)
        made.deploy(made.new_bundle())
        yield made
    finally:
        down(name)


def reboot(board: simboard.SimBoard) -> None:
    """At once, without a shutdown."""
    before = nspawn.init_pid(board.folder)
    command = ["nsenter", "-t", str(before), "-m", "-u", "-i", "-n", "-p", "systemctl", "--force", "--force", "reboot"]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, IndexError, ValueError):  # not quite there yet
            if nspawn.init_pid(board.folder) != before:
                return
        time.sleep(0.05)
    raise AssertionError("the board does not reboot")
