"""Clocks are pinned while the NPU has load, and are what they were afterwards: also after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rk3588.boards import catalogue
from rk3588.simboard import tree
from tests.fakes import ROOT

RUN = "from rk3588.deploy.board import clocks; clocks.REST = clocks.TICK = 0.05; clocks.{0}({1!r})"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A board's /sys; one CPU is at its highest by the user's wish."""
    tree.write_all(tmp_path / "root", catalogue().board("rock-5b"))
    governor = tmp_path / "root" / "sys/devices/system/cpu/cpufreq/policy6/scaling_governor"
    governor.write_text("performance\n")
    return tmp_path / "root"


def start(root: Path, what: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RKBOARD_SYSROOT": str(root), "PYTHONPATH": str(ROOT)}
    program = RUN.format(what, str(root.parent / "state"))
    return subprocess.Popen([sys.executable, "-c", program], env=environment)


@pytest.fixture
def watcher(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = start(root, "watch")
    yield process
    process.kill()
    process.wait()


def governors(root: Path) -> list[str]:
    patterns = ("sys/class/devfreq/*/governor", "sys/devices/system/cpu/cpufreq/*/scaling_governor")
    paths = [path for pattern in patterns for path in root.glob(pattern)]
    return sorted(path.read_text().strip() for path in paths)


REST = ["ondemand", "ondemand", "performance", "simple_ondemand", "simple_ondemand"]
BUSY = ["performance"] * 5


def load(root: Path, percent: int) -> None:
    path = root / "sys/kernel/debug/rknpu/load"
    path.write_text(f"NPU load:  Core0:  0%, Core1: {percent}%, Core2:  0%,\n")


def wait_for(root: Path, wanted: list[str]) -> None:
    deadline = time.monotonic() + 30
    while governors(root) != wanted:
        assert time.monotonic() < deadline, governors(root)
        time.sleep(0.02)


def test_up_with_the_load_and_down_again(root: Path, watcher: subprocess.Popen[bytes]) -> None:
    assert governors(root) == REST
    for _ in range(2):
        load(root, 37)
        wait_for(root, BUSY)
        load(root, 0)
        wait_for(root, REST)
    assert watcher.poll() is None


def test_stopping_it_restores_them(root: Path, watcher: subprocess.Popen[bytes]) -> None:
    load(root, 5)
    wait_for(root, BUSY)
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(30) == 0
    assert governors(root) == REST


def test_after_a_kill_the_unit_restores_them(root: Path, watcher: subprocess.Popen[bytes]) -> None:
    load(root, 5)
    wait_for(root, BUSY)
    watcher.kill()
    watcher.wait()
    assert governors(root) == BUSY
    assert start(root, "restore").wait(30) == 0
    assert governors(root) == REST
    assert start(root, "restore").wait(30) == 0  # nothing to restore
