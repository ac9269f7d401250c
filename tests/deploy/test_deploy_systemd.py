"""The real daemon and model on a board of systemd and OpenSSH: deployed, replaced, rolled back, rebooted."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("paramiko")

from rk3588 import simboard
from rk3588.simboard import nspawn
from tests.deploying import Deployer

pytestmark = [pytest.mark.usefixtures("board_watch"), pytest.mark.slow, pytest.mark.model]


@pytest.fixture
def board(pyz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployer]:
    if why := nspawn.why_unavailable():
        pytest.skip(why)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    deployer = Deployer("pantry", pyz, tmp_path)
    deployer.run("board", "up", "pantry", "--systemd")
    yield deployer
    if simboard.find("pantry"):
        deployer.run("board", "down", "pantry")


def on_board(board: Deployer, command: str) -> str:
    found = board.found()
    address = f"{found.ssh['user']}@{found.ssh['address']}"
    words = ["ssh", "-p", str(found.ssh["port"]), "-i", str(found.folder / "id"), "-o", "BatchMode=yes"]
    words += ["-o", f"UserKnownHostsFile={found.folder / 'known_hosts'}", address, command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout


_ASK = """
import json, urllib.request
key = open("/opt/rkchatd/keys").read().split(":")[-1].strip()
body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 12}
head = {"Content-Type": "application/json", "Authorization": "Bearer " + key}
request = urllib.request.Request("http://127.0.0.1:8080/v1/chat/completions", json.dumps(body).encode(), head)
print(urllib.request.urlopen(request).read().decode())
"""


def ask(board: Deployer) -> Any:
    return json.loads(on_board(board, f"sudo python3 -c '{_ASK}'"))


def current(board: Deployer) -> str:
    return next(str(row["release"]) for row in board.releases() if row["current"])


def test_the_life_of_a_daemon_on_a_board(board: Deployer, smollm2_bundles: Mapping[str, Path]) -> None:
    first = board.deploy(smollm2_bundles["w8a8"])
    assert first["bytes_sent"] > 100_000_000
    assert ask(board)["usage"]["completion_tokens"] == 12
    assert board.deploy(smollm2_bundles["w8a8"]) | {"release": ""} == {
        "host": "pantry", "commands": 0, "bytes_sent": 0, "release": "", "healthy": True,
    }  # fmt: skip
    assert "active" in on_board(board, "systemctl is-active rkchatd")
    assert not on_board(board, "systemd-analyze verify /etc/systemd/system/rkchatd.service 2>&1")

    on_board(board, "sudo pkill -9 -f rkruntime.daemon.worker")
    assert ask(board)["usage"]["completion_tokens"] == 12

    second = board.deploy(smollm2_bundles["w8a8_g128"])
    assert current(board) == second["release"] != first["release"]
    board.run("rollback", "pantry")
    assert current(board) == first["release"]

    on_board(board, "sudo systemctl reboot")
    deadline = time.monotonic() + 120
    while "ready" not in on_board(board, "sudo journalctl -b -q -u rkchatd -o cat"):
        assert time.monotonic() < deadline, "it does not come back after a reboot"
        time.sleep(1)
    assert ask(board)["model"] == "SmolLM2-135M-Instruct"

    board.run("remove", "pantry", "--yes")
    assert on_board(board, "ls -A /opt/rkchatd; systemctl list-unit-files rkchatd.service --no-legend") == ""
