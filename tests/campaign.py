"""Faults in the middle of a deployment, at random moments, to a board with a real systemd and OpenSSH.

A round: a deployment begins, something happens to it, and then: a service answers on the board, what the deployer said
is one clear sentence, the next run succeeds, and nothing is left over. Moments and choices are drawn from seed, fault
and number, so each round can be had again alone: ``python -m tests.campaign [ROUNDS] [SEED] [FAULT [NUMBER]]``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import queue
import random
import re
import signal
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rk3588 import bundle
from rk3588.deploy import deployment
from rk3588.deploy.apply import Watcher
from rk3588.deploy.board.files import delete_durably
from rk3588.deploy.board.service import SERVICE
from rk3588.deploy.deployment import Options
from rk3588.deploy.ssh import config, connection
from rk3588.deploy.steps import describe_plan
from rk3588.errors import BoardError
from rk3588.simboard import nspawn
from rk3588.simboard.preparing import new_key
from tests.deploying import watched
from tests.scene import PATIENCE, RATE, Scene, reboot, scene

BOARDS = 6  # at a time: most of a round is waiting
Heal = Callable[[], None]
Fault = Callable[[Scene, "subprocess.Popen[str]"], Heal]

# ---------------------------------------------------------------------------------------------------------- faults
# Each does its harm while ``process`` is deploying, and returns how it is put right again.


def nothing() -> None:
    pass


def link_down(scene: Scene, _process: subprocess.Popen[str]) -> Heal:
    scene.wait_for_a_moment()
    nspawn.set_link(scene.board, "down")
    return lambda: nspawn.set_link(scene.board, "up")


def sshd_killed(scene: Scene, _process: subprocess.Popen[str]) -> Heal:
    """The listener and every session; systemd starts the listener again."""
    scene.wait_for_a_moment()
    scene.inside("pkill", "-KILL", "-x", "sshd")
    return scene.wait_until_up


def disk_full(scene: Scene, _process: subprocess.Popen[str]) -> Heal:
    scene.wait_for_a_moment()
    filler = scene.disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        free = os.statvfs(scene.disk)
        os.posix_fallocate(file.fileno(), 0, max(1, (free.f_bavail - 64) * free.f_frsize))
        file.seek(0, os.SEEK_END)
        while True:
            file.write(bytes(4096))
    return lambda: delete_durably(str(filler))


def rebooted(scene: Scene, _process: subprocess.Popen[str]) -> Heal:
    scene.wait_for_a_moment()
    reboot(scene.board)
    return scene.wait_until_up


def power_cut(scene: Scene, _process: subprocess.Popen[str]) -> Heal:
    scene.wait_for_a_moment()
    nspawn.power_cut(scene.board)
    return scene.wait_until_up


def deployer_killed(scene: Scene, process: subprocess.Popen[str]) -> Heal:
    scene.wait_for_a_moment()
    process.send_signal(signal.SIGKILL)
    return nothing


def remote_file_changed(scene: Scene, process: subprocess.Popen[str]) -> Heal:
    """A byte of a file that has come, or of half a one, turns over."""
    scene.wait_for_a_moment(0.6)
    while process.poll() is None:
        files = [path for path in scene.prefix.glob("incoming/*/**/*") if path.is_file()]
        if files:
            victim = scene.chance.choice(sorted(files))
            with contextlib.suppress(OSError), victim.open("r+b") as file:
                middle = file.seek(0, os.SEEK_END) // 2
                file.seek(middle)
                byte = file.read(1) or b"x"
                file.seek(middle)
                file.write(bytes([byte[0] ^ 0x40]))
                scene.phase = "while files came"
                break
        time.sleep(0.01)
    return nothing


def host_key_changed(scene: Scene, process: subprocess.Popen[str]) -> Heal:
    """The deployment that was going on may end well; the next one must not begin."""
    scene.wait_for_a_moment()
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


def only_wait(scene: Scene, process: subprocess.Popen[str]) -> Heal:
    process.wait(180)
    scene.phase = "while it proved itself"
    return nothing


def clock_jumps(scene: Scene, process: subprocess.Popen[str]) -> Heal:
    """By two years, forth or back, for all that runs on the board from now on: `date`, and Python's clock."""
    scene.wait_for_a_moment()
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
    recover(scene, scene.new_bundle())  # two years off, all goes as ever

    def heal() -> None:
        date.unlink()
        clock.write_text(kept)

    return heal


@dataclass(frozen=True)
class Kind:
    """A fault; ``behaviour`` of the daemon that is deployed; ``says``: what a deployer that fails has to say."""

    fault: Fault
    says: str
    behaviour: str = ""


LOST = r"the link to .* was lost|cannot reach|does not (answer|start|speak)|took no data|gave no answer"
KINDS = {  # the longest first, so that none is waited for at the end
    "clock two years off": Kind(clock_jumps, r"(?!)"),
    "never ready": Kind(only_wait, r"did not prove itself: not ready after 2 s .*is back and answers", "never"),
    "link down": Kind(link_down, LOST),
    "sshd killed": Kind(sshd_killed, LOST),
    "disk full": Kind(disk_full, r"No space left on device|needed to send it"),
    "board rebooted": Kind(rebooted, LOST),
    "power cut": Kind(power_cut, LOST),
    "deployer killed": Kind(deployer_killed, r"(?!)"),
    "remote file changed": Kind(remote_file_changed, r"was changed on the board|is not what was announced"),
    "lies at init": Kind(only_wait, r"did not prove itself: a chat was answered with 500.*is back and answers", "lie"),
    "host key changed": Kind(host_key_changed, r"has CHANGED|" + LOST),
}

# ---------------------------------------------------------------------------------------------------------- rounds


def round_of(scene: Scene, name: str, seed: str) -> str:
    """One round; returns what happened in a few words. AssertionError with what was not as it must be."""
    kind = KINDS[name]
    scene.chance, scene.phase = random.Random(f"{seed} {name}"), ""
    before = scene.serving()
    assert before == scene.current
    wanted = scene.new_bundle(kind.behaviour)
    patience = 2 if kind.behaviour else PATIENCE
    process = scene.deployer.start(wanted, "--patience", patience, "--limit-rate", RATE)
    try:
        heal = kind.fault(scene, process)
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
        with process:  # closes its pipes
            pass
    assert "Traceback" not in err, err
    if process.returncode > 0:
        assert re.search(kind.says, err, re.DOTALL), f"it said: {err}"
        assert len(re.findall("^Error: ", err, re.MULTILINE)) == 1, err
        assert not out
    if process.returncode == 0:
        assert not kind.behaviour
        assert json.loads(out)[0]["healthy"]
    # The cable is still out here, the disk still full: something answers all the same, unless the board is starting.
    serving = scene.serving()
    good = {path.name for path in scene.bundles[scene.bundles.index(wanted) :] if not kind.behaviour}
    allowed = good | ({before} if process.returncode else set())
    assert serving in allowed, f"{serving}, not one of {allowed}: {err}"
    heal()
    recover(scene, wanted if not kind.behaviour else scene.new_bundle())
    ends = {0: "it succeeded all the same", -signal.SIGKILL: "it was gone"}
    return f"{scene.phase}: {ends.get(process.returncode, 'it failed')}"


def recover(scene: Scene, wanted: Path) -> None:
    """The next run succeeds and leaves nothing over."""
    scene.deploy(wanted)
    assert scene.serving() == wanted.name
    prefix = scene.prefix
    assert {path.name for path in prefix.iterdir()} == {"releases", "incoming", "current", "keys", "activation.log"}
    assert list((prefix / "incoming").iterdir()) == []
    assert scene.current == wanted.name
    releases = list((prefix / "releases").iterdir())
    assert len(releases) <= 3
    assert all((path / ".proven").exists() for path in releases), releases
    assert not list(prefix.rglob("*.part"))
    assert not list(prefix.rglob("*.new"))
    for path in releases:
        assert damaged(path) == []
    assert scene.processes("[r]kchatd.pyz") == 1
    assert [path.name for path in (scene.board.folder / "root/etc/systemd/system").glob("rkchatd*")] == [SERVICE]
    # The lock's agent may have to notice first that nobody is there any more; then the connection ends, and all others.
    deadline = time.monotonic() + 30
    while scene.processes("[d]eploy.board.agent"):
        assert time.monotonic() < deadline, "agents of a lost connection are still there"
        time.sleep(0.5)
    with connection.connect(config.Destination(**scene.board.ssh), lambda _: None, lambda *_: False) as board:
        options = Options(simulated=True, daemon=scene.deployer.daemon, patience=PATIENCE)
        planned = deployment.deploy(board, bundle.read(wanted), options, Watcher(), only_plan=True).plan
    assert planned.steps == (), describe_plan(planned)


def damaged(release: Path) -> list[str]:
    """Files of a release that are not what its manifest says."""
    files = json.loads((release / "release.json").read_text())["files"].items()
    return [path for path, said in files if bundle.sha256(release / path) != said["sha256"]]


Round = tuple[str, int]  # fault and number


def rounds_of(rounds: int, kinds: Iterable[str] = KINDS) -> list[Round]:
    return [(name, number) for number in range(rounds) for name in kinds]


def run(
    folder: Path, rounds: Iterable[Round], seed: str, daemon: Path | None = None, real: Path | None = None
) -> dict[str, Counter[str]]:
    """All ``rounds``, on several boards at once; what happened, by fault. AssertionError with all that went wrong.

    ``daemon`` and ``real``: of ``scene``.
    """
    print(f"seed {seed}", flush=True)
    waiting: queue.SimpleQueue[Round] = queue.SimpleQueue()
    for one in rounds:
        waiting.put(one)
    boards = min(BOARDS, waiting.qsize())
    happened: dict[str, Counter[str]] = {}
    wrong: list[str] = []

    def rounds_on(stage: Scene) -> None:
        """Until none waits or one goes wrong."""
        while True:
            name, count = waiting.get_nowait()
            started = time.monotonic()
            try:
                outcome = round_of(stage, name, f"{seed} {count}")
            except Exception:
                again = f"python -m tests.campaign 1 {seed} {name!r} {count}"
                wrong.append(f"{name} {stage.phase} (again: {again})\n{traceback.format_exc()}")
                print(f"{name} {count}: WRONG {wrong[-1]}", flush=True)
                return
            print(f"{name} {count}: {outcome}, {time.monotonic() - started:.1f} s", flush=True)
            happened.setdefault(name, Counter())[outcome] += 1

    def work(number: int) -> None:
        failures = 0
        while not waiting.empty():  # another board after a round that went wrong
            place = Path(tempfile.mkdtemp(prefix="scene", dir=folder))
            try:
                with contextlib.suppress(queue.Empty), scene(place, f"campaign{number}", daemon, real) as stage:
                    rounds_on(stage)
            except BoardError as error:  # a container did not start, which is not what is tried here
                print(f"board {number}: {error}", flush=True)
                failures += 1
                if failures == 3:
                    raise

    with concurrent.futures.ThreadPoolExecutor(boards) as pool:
        try:
            for future in [pool.submit(work, number) for number in range(boards)]:
                future.result()
        except BaseException:  # Ctrl-C: each board's round is the last
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
            raise
    assert not wrong, "\n".join(wrong)
    return happened


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("rounds", nargs="?", type=int, default=20, help="of each fault")
    parser.add_argument("seed", nargs="?", default="1")
    parser.add_argument("fault", nargs="?", choices=KINDS, help="only this one")
    parser.add_argument("number", nargs="?", type=int, help="only this round of it")
    given = parser.parse_args()
    wanted = rounds_of(given.rounds, [given.fault] if given.fault else KINDS)
    wanted = [one for one in wanted if given.number in (None, one[1])] or [(given.fault, given.number)]
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_STATE_HOME"] = name
        with watched(Path(name)):
            happened = run(Path(name), wanted, given.seed)
    for kind, outcomes in happened.items():
        print(f"\n{kind}: {outcomes.total()} rounds")
        for outcome, count in sorted(outcomes.items()):
            print(f"{count:4d} {outcome}")


if __name__ == "__main__":
    main()
