"""What tests of a simulated board without root share: the board, the stand-in daemon, and bundles for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rk3588 import simboard
from rk3588.boards import catalogue
from rk3588.simboard import control
from tests import deploying, sshd
from tests.deploying import Deployer


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    kinds = {"one": "", "two": "", "three": "", "dies": "die", "lies": "lie", "crashes": "crash", "slow": "slow 2"}
    return {name: deploying.bundle(folder, name, behaviour) for name, behaviour in kinds.items()}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploying.standin(tmp_path_factory.mktemp("daemon"))


@pytest.fixture
def board(daemon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployer]:
    """A fresh board."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    control.up("attic", catalogue().board("rock-5b"))
    yield Deployer("attic", daemon, tmp_path)
    if simboard.find("attic"):
        control.down("attic")


@pytest.fixture
def port() -> int:
    return sshd.free_port()


def prefix_of(board: Deployer) -> Path:
    return board.found().folder / "home" / ".local" / "share" / "rkchatd"


def key_of(board: Deployer) -> str:
    return (prefix_of(board) / "keys").read_text().strip().rpartition(":")[2]


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
