"""What goes wrong in the middle of a deployment, on a board with a real systemd and OpenSSH (systemd-nspawn, as root).

Afterwards the old release answers, what was said is clear, and the next run works and leaves nothing over.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588.boards import catalogue
from rk3588.simboard import control, nspawn
from tests import deploying
from tests.deploying import Deployer

pytestmark = [
    pytest.mark.usefixtures("board_watch"),
    pytest.mark.skipif(bool(nspawn.missing()), reason=nspawn.missing() or "-"),
]
PREFIX = "/opt/rkchatd"
ASK = f"""
key=$(sudo cat {PREFIX}/keys | cut -d: -f2); python3 - "$key" <<'END'
import json, sys, urllib.request as r
body = json.dumps({{"messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 2}}).encode()
request = r.Request("http://127.0.0.1:8080/v1/chat/completions", body, {{"Authorization": "Bearer " + sys.argv[1]}})
print(json.load(r.urlopen(request, timeout=30))["choices"][0]["message"]["content"])
END
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployer]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home))
        nspawn.up("loft", catalogue().board("orange-pi-5-plus"))
        yield Deployer("loft", deploying.standin(home), home)
        control.down("loft")
    assert str(home) not in Path("/proc/self/mounts").read_text()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    behaviours = {"one": "", "two": "", "lies": "lie"}
    return {name: deploying.bundle(folder, name, behaviour) for name, behaviour in behaviours.items()}


def on(board: Deployer, command: str) -> str:
    """stdout of a command on the board, as its user."""
    ssh = board.found().ssh
    options = ["-i", str(ssh["keys"][0]), "-o", f"UserKnownHostsFile={ssh['known_hosts'][0]}", "-o", "BatchMode=yes"]
    words = ["ssh", *options, "-o", "ConnectTimeout=5", f"{ssh['user']}@{ssh['address']}", command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout


def until_answer(board: Deployer, wanted: str) -> None:
    deadline, said = time.monotonic() + 90, ""
    while said != wanted and time.monotonic() < deadline:
        said = on(board, ASK).strip()
        time.sleep(0.2)
    assert said == wanted


def wait_for_part(board: Deployer) -> None:
    deadline = time.monotonic() + 60
    while not on(board, f"sudo find {PREFIX}/incoming -name '*.sim.gguf.part' -size +20k").strip():
        assert time.monotonic() < deadline, "nothing arrived"


def pull_the_cable(board: Deployer) -> None:
    nspawn.link(board.found(), "down")


def reboot(board: Deployer) -> None:
    on(board, "sudo systemctl --no-block reboot")


def kill_sshd(board: Deployer) -> None:
    on(board, "sudo pkill -KILL sshd")


def next_run(board: Deployer, bundle: Path) -> None:
    """Works as soon as the board is up; the lock of the one that was cut off falls by itself."""
    deadline = time.monotonic() + 120
    waiting = ("is going on", "still writes", "cannot reach", "does not answer", "does not speak SSH")
    while True:
        done = board.run(*board.words(bundle), code=None)
        if done.returncode == 0:
            break
        assert any(words in done.stderr for words in waiting), done.stderr
        assert time.monotonic() < deadline, done.stderr
        time.sleep(1)
    assert on(board, f"sudo ls {PREFIX}/incoming").strip() == ""


# With the cable out nobody tells the board: the lock of the one that was cut off falls after a minute of silence.
@pytest.mark.parametrize("fault", [pytest.param(pull_the_cable, marks=pytest.mark.slow), reboot, kill_sshd])
def test_an_upload_that_is_cut_off(
    board: Deployer, bundles: dict[str, Path], fault: Callable[[Deployer], None], tmp_path: Path
) -> None:
    next_run(board, bundles["one"])
    new = deploying.bundle(tmp_path, "new")
    slow = board.start(new, "--limit-rate", "60k")
    try:
        wait_for_part(board)
        fault(board)
        _, said = slow.communicate(timeout=150)
    finally:
        slow.kill()
        nspawn.link(board.found(), "up")
    assert slow.returncode == 1, said
    assert "run the same command again" in said
    assert "Traceback" not in said
    until_answer(board, "one here")
    next_run(board, new)
    assert on(board, ASK).strip() == "new here"


def test_a_runtime_that_lies(board: Deployer, bundles: dict[str, Path]) -> None:
    next_run(board, bundles["one"])
    said = board.fail(bundles["lies"])
    assert "did not prove itself" in said
    assert "is back and answers" in said
    assert on(board, ASK).strip() == "one here"
    next_run(board, bundles["two"])
    assert [row["name"] for row in board.releases() if row["current"]] == ["two"]


def test_a_service_of_systemd_and_its_end(board: Deployer, bundles: dict[str, Path]) -> None:
    next_run(board, bundles["one"])
    again = board.deploy(bundles["one"])
    assert (again["commands"], again["bytes_sent"]) == (0, 0)
    assert on(board, "systemctl is-active rkchatd; systemctl is-enabled rkchatd").split() == ["active", "enabled"]
    assert on(board, "ps -o user= -p $(systemctl show -P MainPID rkchatd)").strip() == "rkchatd"
    board.run("remove", "loft", "--yes")
    assert on(board, f"ls -d {PREFIX} /etc/systemd/system/rkchatd* /etc/udev/rules.d/*rkchatd*").strip() == ""
    assert on(board, "getent passwd rkchatd").strip() == ""
