"""Where a deployment finds the daemon and the libraries, and what it says where they are not."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from rk3588 import resources
from rk3588.deploy import programs
from rk3588.errors import DeployError, LibraryError

HERE = {"x86_64": "x86_64", "aarch64": "aarch64"}[platform.machine()]
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[HERE]


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel's package folder: this machine's libraries, and nothing of a source tree."""
    (tmp_path / "lib").mkdir()
    for name in ("librkllmrt.so", "librksim.so"):
        (tmp_path / "lib" / name).touch()

    def packaged(name: str) -> Path:
        if (tmp_path / name).is_file():
            return tmp_path / name
        raise LibraryError(name)

    monkeypatch.setattr(programs, "packaged", packaged)
    monkeypatch.setattr(programs, "source_tree", lambda: None)
    return tmp_path


@pytest.fixture
def clone(installation: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    top = installation / "clone"
    (top / "build" / OTHER).mkdir(parents=True)
    monkeypatch.setattr(programs, "source_tree", lambda: top)
    return top


def test_the_daemon_of_the_wheel_and_of_a_clone(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeployError) as told:
        programs.find_daemon()
    assert str(told.value) == (
        "rkchatd.pyz is not in this installation, which was made without a network: install rk3588 again with one, or "
        "run `make pyz` in a clone of its sources and give --daemon build/rkchatd.pyz of there"
    )
    (installation / "rkchatd.pyz").touch()
    assert programs.find_daemon() == installation / "rkchatd.pyz"
    (installation / "rkchatd.pyz").unlink()
    monkeypatch.setattr(programs, "source_tree", lambda: installation)
    with pytest.raises(DeployError, match="is not built yet: run `make pyz`"):
        programs.find_daemon()
    (installation / "build").mkdir()
    (installation / "build" / "rkchatd.pyz").touch()
    assert programs.find_daemon() == installation / "build" / "rkchatd.pyz"


def test_what_lies_beside_an_installation_is_not_ours(installation: Path) -> None:
    """`build` in site-packages is another project's."""
    (installation / "build").mkdir()
    (installation / "build" / "rkchatd.pyz").touch()
    with pytest.raises(DeployError):
        programs.find_daemon()


def test_libraries_of_this_machine(installation: Path) -> None:
    for machine in ("", HERE):
        assert programs.find_library("librksim.so", machine) == installation / "lib" / "librksim.so"


@pytest.mark.usefixtures("installation")
def test_libraries_of_another_machine_for_somebody_who_used_pip() -> None:
    """One sentence names both, where both are needed."""
    with pytest.raises(LibraryError) as told:
        programs.find_library("librkllmrt.so", OTHER)
    assert str(told.value) == (
        f"this installation has librksim.so and librkllmrt.so for {HERE} only, and the board is {OTHER}: run "
        f"`make {OTHER}` in a clone of rk3588's sources and give --sim-library build/{OTHER}/librksim.so "
        f"--sim-runtime build/{OTHER}/librkllmrt.so of there"
    )
    with pytest.raises(LibraryError) as told:
        programs.find_library("librksim.so", OTHER)
    assert "--sim-runtime" not in str(told.value)
    with pytest.raises(LibraryError, match=r"there is no librksim\.so for riscv64 here"):
        programs.find_library("librksim.so", "riscv64")


def test_libraries_of_another_machine_in_a_clone(clone: Path) -> None:
    with pytest.raises(LibraryError, match=f"is not built yet: run `make {OTHER}`"):
        programs.find_library("librksim.so", OTHER)
    (clone / "build" / OTHER / "librksim.so").touch()
    assert programs.find_library("librksim.so", OTHER) == clone / "build" / OTHER / "librksim.so"


def test_a_clone_that_hides_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -c 'import rk3588…'` in a clone finds the clone's, which has no libraries."""
    monkeypatch.setattr(resources, "source_tree", lambda: tmp_path)
    with pytest.raises(LibraryError, match=r"lib/none\.so is not in /.*, a clone of rk3588 .* from another folder"):
        resources.packaged("lib/none.so")
