"""How facts are found: answers of commands, and a simulated board whose files are changed by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588.boards import catalogue
from rk3588.deploy import judge, probes, units
from rk3588.deploy.facts import Facts
from rk3588.deploy.local import LocalConnection
from rk3588.errors import printable
from rk3588.simboard import tree
from tests.plan_cases import PREFIX
from tests.ssh_client import Ordinary, nobody

NVME = "/mnt/nvme/rkchatd"


@pytest.fixture
def sysroot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a Rock 5B, as `board up` makes them, for this machine's shell."""
    tree.write_all(tmp_path / "tree", catalogue().board("rock-5b"))
    monkeypatch.setenv("RKBOARD_SYSROOT", str(tmp_path / "tree"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "tree"


def look(thorough: bool = False) -> Facts:
    return probes.parse(probes.gather(LocalConnection(nobody), thorough=thorough))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def render_nodes(root: Path) -> None:
    """As the DRM kernel has them: a GPU first, then the NPU."""
    (root / "dev" / "rknpu").unlink()
    for number, driver in ((128, "mali"), (129, "RKNPU")):
        put(root / "dev" / "dri" / f"renderD{number}", "")
        put(root / f"sys/class/drm/renderD{number}/device/uevent", f"DRIVER={driver}\nOF_NAME=x\n")


def by_path_only(root: Path) -> None:
    (root / "dev" / "rknpu").unlink()
    put(root / "dev" / "dri" / "renderD130", "")
    link = root / "dev" / "dri" / "by-path" / "platform-fdab0000.npu-render"
    link.parent.mkdir()
    link.symlink_to("../renderD130")


def mainline(root: Path) -> None:
    (root / "dev" / "rknpu").unlink()
    (root / "sys/kernel/debug/rknpu/version").unlink()
    put(root / "dev" / "accel" / "accel0", "")
    (root / "sys/bus/platform/drivers/rocket").mkdir(parents=True)


def without_policy6_and_dmc(root: Path) -> None:
    for folder in (root / "sys/devices/system/cpu/cpufreq/policy6", root / "sys/class/devfreq/dmc"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def dmc_without_steps(root: Path) -> None:
    folder = root / "sys/class/devfreq/dmc"
    (folder / "available_frequencies").unlink()
    put(folder / "max_freq", "2112000000\n")


def driver_elsewhere(root: Path) -> None:
    (root / "sys/kernel/debug/rknpu/version").unlink()
    put(root / "proc/rknpu/version", "RKNPU driver: v0.9.7\n")


def libraries(root: Path) -> None:
    put(root / "usr/lib/librkllmrt.so", "..rkllm-runtime version: 1.2.1b1\0rkllm_init\0")
    put(root / "var/lib/docker/overlay2/x/usr/lib/librkllmrt.so", "librkllmrt version: 1.3.0 (2025)\0rkllm_init\0")
    put(root / "home/me/librkllmrt.so.1", "rkllm_init\0rkllm_run_async\0")


def a_faked_node(root: Path) -> None:
    render_nodes(root)
    (root / "dev" / "rknpu").symlink_to("dri/renderD129")


def device_tree_in_proc(root: Path) -> None:
    (root / "sys/firmware/devicetree/base/compatible").unlink()
    put(root / "proc/device-tree/compatible", "radxa,rock-5b-plus\0rockchip,rk3588\0")


def heat(root: Path) -> None:
    put(root / "sys/class/thermal/thermal_zone1/temp", "119000")
    put(root / "sys/class/thermal/thermal_zone1/type", "npu-thermal")


CHANGES: dict[str, tuple[Callable[[Path], object], Callable[[Facts], object], object]] = {
    "nothing": (str, lambda f: (f.driver, f.compatible[0]), ("0.9.8", "radxa,rock-5b")),
    "DRM": (render_nodes, lambda f: [n.path for n in f.npu_nodes], ["/dev/dri/renderD129"]),
    "DRM by path": (
        by_path_only,
        *(lambda f: [n.path for n in f.npu_nodes], ["/dev/dri/by-path/platform-fdab0000.npu-render"]),
    ),
    "DMA_HEAP": (str, lambda f: [n.path for n in f.nodes], ["/dev/rknpu", "/dev/dma_heap/system"]),
    "mainline": (mainline, lambda f: (f.driver, f.rocket != (), f.npu_nodes), (None, True, ())),
    "a faked node": (
        a_faked_node,
        *(lambda f: [(n.path, n.link) for n in f.npu_nodes if n.link], [("/dev/rknpu", "dri/renderD129")]),
    ),
    "no policy6, no DMC": (
        without_policy6_and_dmc,
        *(lambda f: [c.name for c in f.clocks], ["npu", "policy0", "policy4"]),
    ),
    "DMC without steps": (dmc_without_steps, lambda f: {c.name: c.highest for c in f.clocks}["dmc"], 2_112_000_000),
    "driver in /proc": (driver_elsewhere, lambda f: f.driver, "0.9.7"),
    "device tree in /proc": (
        device_tree_in_proc,
        *(lambda f: f.compatible, ("radxa,rock-5b-plus", "rockchip,rk3588")),
    ),
    "heat": (heat, lambda f: f.heat, {"soc-thermal": 41.0, "npu-thermal": 119.0}),
    "memory": (
        lambda root: put(root / "proc/meminfo", "MemTotal: 4000000 kB\nMemAvailable: 1000000 kB\nSwapTotal: 9 kB\n"),
        *(lambda f: f.memory["MemAvailable"], 1000000 << 10),
    ),
    "load": (
        lambda root: put(root / "sys/kernel/debug/rknpu/load", "NPU load:  Core0: 97%, Core1:  0%,\n"),
        *(lambda f: f.npu_load, "NPU load: Core0: 97%, Core1: 0%,"),
    ),
    "runtimes": (
        libraries,
        *(
            lambda f: {library.path: library.version for library in f.libraries},
            {
                "/usr/lib/librkllmrt.so": "1.2.1b1",
                "/var/lib/docker/overlay2/x/usr/lib/librkllmrt.so": "1.3.0",
                "/home/me/librkllmrt.so.1": "1.1",
            },
        ),
    ),
    "an RTC": (lambda root: put(root / "dev/rtc0", ""), lambda f: f.rtc, True),
    "hostile names": (
        lambda root: (root / "sys/firmware/devicetree/base/model").write_bytes(b"Rock\x1b]0;owned\x07\x9b2J\0"),
        *(lambda f: f.model.isprintable(), True),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_is_changed_is_a_fact_that_changes(name: str, sysroot: Path) -> None:
    change, view, expected = CHANGES[name]
    change(sysroot)
    assert view(look(thorough=name == "runtimes")) == expected


@pytest.mark.usefixtures("sysroot")
def test_the_memory_is_measured() -> None:
    """For the doctor alone, on whatever processor this is: more than an SD card, less than a cache."""
    assert look().memory_speed is None
    speed = look(thorough=True).memory_speed
    assert speed is not None and 2e8 < speed < 2e12


def test_who_has_the_npu_open(sysroot: Path) -> None:
    with (sysroot / "dev" / "rknpu").open():
        (holder,) = look().holders
    assert holder.pid == os.getpid()
    assert look().holders == ()


JOURNAL = "case $* in *-b\\ -1*) echo 'Journal stopped';; *-b\\ -2*) echo 'model loaded';; *) exit 1;; esac"
WTMP = "printf '%s x\\n' reboot runlevel reboot shutdown reboot wtmp"  # the last first


@pytest.mark.parametrize(
    ("journal", "last", "ends"),
    [
        (JOURNAL, WTMP, ("clean", "crash")),
        ("exit 1", WTMP, ("crash", "clean")),  # the journal keeps this boot only
        ("exit 1", "exit 127", ()),
    ],
)
def test_how_earlier_boots_ended(
    sysroot: Path, monkeypatch: pytest.MonkeyPatch, journal: str, last: str, ends: tuple[str, ...]
) -> None:
    for name, script in (("journalctl", journal), ("last", last)):
        put(sysroot / "bin" / name, f"#!/bin/sh\n{script}\n")
        (sysroot / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{sysroot}/bin:{os.environ['PATH']}")
    assert look(thorough=True).ends == ends


@pytest.mark.parametrize(
    ("group", "unit"),
    [
        ("0::/system.slice/frigate.service", "frigate.service"),
        ("0::/system.slice/rkchatd.service/worker", "rkchatd.service"),
        ("0::/system.slice/docker-1f03a2b4c5d6e7f8.scope", "docker 1f03a2b4c5d6"),
        ("12:pids:/docker/1f03a2b4c5d6e7f8", "docker 1f03a2b4c5d6"),
        ("0::/machine.slice/libpod-1f03a2b4c5d6e7f8.scope", "podman 1f03a2b4c5d6"),
        # Not the system's to stop: it would end the whole session.
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", ""),
        ("0::/user.slice/user-1000.slice/session-3.scope", ""),
    ],
)
def test_what_a_process_belongs_to(group: str, unit: str) -> None:
    facts = probes.parse({"holders": f"7\tname\t{group}\n"})
    assert [holder.unit for holder in facts.holders] == [unit]


def test_driver_versions_wherever_they_are_said() -> None:
    said = {
        "RKNPU driver: v0.9.8\n": "0.9.8",
        "[    5.123456] [drm] Initialized rknpu 0.9.8 20240828 for fdab0000.npu on minor 1\n": "0.9.8",
        "RKNPU fdab0000.npu: Initialized RKNPU driver: v0.9.6 for 20240322\n": "0.9.6",
        "cat: permission denied\n": None,
    }
    assert {text: probes.parse({"driver": text}).driver for text in said} == said


def test_file_systems_without_inodes_are_not_full() -> None:
    assert probes.parse({"inodes_free": "0 0\n"}).inodes_free is None  # btrfs
    assert probes.parse({"inodes_free": "1000 0\n"}).inodes_free == 0


def test_a_simulated_board_has_no_part_of_this_machines_sudo(sysroot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may use sudo here is not asked for a password, and sees all of the board."""
    (sysroot / "sudo").write_text("#!/bin/sh\necho 'sudo: a password is required' >&2; exit 1\n")
    (sysroot / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{sysroot}:{os.environ['PATH']}")
    facts = probes.parse(probes.gather(Ordinary(nobody), thorough=True))
    assert (facts.driver, facts.sudo, facts.as_root) == ("0.9.8", "none", True)


def test_a_doctor_without_the_password_says_what_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sudo").write_text("#!/bin/sh\necho 'sudo: a password is required' >&2; exit 1\n")
    (tmp_path / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("RKBOARD_SYSROOT", raising=False)
    facts = probes.parse(probes.gather(Ordinary(nobody), thorough=True))
    assert (facts.sudo, facts.as_root, facts.driver) == ("password", False, None)
    assert "npu driver" in {finding.fact for finding in judge.judge(facts, PREFIX) if finding.level == "warn"}


def test_the_prefix_is_that_of_the_service(sysroot: Path) -> None:
    """Without one it is where a deployment would go; disk and file system are looked at there."""
    assert look().prefix == str(sysroot.parent / ".local/share/rkchatd")
    (sysroot / "run/systemd/system").mkdir(parents=True)
    assert look().prefix == PREFIX
    put(sysroot / "etc/systemd/system/rkchatd.service", f"ExecStartPre=+/usr/bin/python3 -I {NVME}/x guard {NVME}\n")
    assert (look().prefix, look().serves) == (NVME, NVME)


def test_what_the_unit_says_is_what_the_probe_reads() -> None:
    unit = units.fill_template("rkchatd.service", {"PREFIX": NVME})
    line = next(line for line in unit.splitlines() if "guard" in line)
    assert line.startswith("ExecStartPre=")
    assert line.endswith(f" guard {NVME}")


def test_text_that_steers_a_terminal_is_not_printed() -> None:
    assert printable("a\x1b[2Jb\x9bc\r\u202ed\x00é °C\n\t→") == "a\ufffd[2Jb\ufffdc\ufffd\ufffdd\ufffdé °C\n\t→"
    command = "@click.command()\ndef c(): raise errors.DeployError('a\\x1bb')\n"
    code = f"import click; from rk3588 import errors, lazy\n{command}lazy.main(c, 'x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "Error: a\ufffdb\n")
