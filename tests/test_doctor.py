"""The doctor: facts in, findings out; and what it makes of a board whose files are changed by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rk3588 import bundle as bundles
from rk3588.boards import catalogue
from rk3588.deploy import judge, probes, release
from rk3588.deploy.facts import Clock, Facts, Holder, Library, Node
from rk3588.deploy.judge import Need
from rk3588.deploy.local import LocalConnection
from rk3588.errors import printable
from rk3588.simboard import tree
from tests import deploying
from tests.plan_cases import GIB, PREFIX, board

OPI, ROCK = board("orange-pi-5-plus"), board("rock-5b")  # a DRM kernel and a DMA_HEAP kernel
NVME = "/mnt/nvme/rkchatd"
DMA = ROCK.nodes
OVERLAY = "overlay rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/overlay"
SLOW_NPU = (Clock("npu", "simple_ondemand", 300_000_000, 1_000_000_000), Clock("dmc", "performance", 5, 5))

# A board, then what has to be found: level, fact, a part of what is said, a part of the remedy.
JUDGED: dict[str, tuple[Facts, str, str, str, str]] = {
    "a board of the catalogue": (OPI, "ok", "board", "Orange Pi 5 Plus, RK3588", ""),
    "an unknown RK3588": (replace(OPI, compatible=("a,b", "rockchip,rk3588"), model="New"), "info", "board", "New", ""),
    "another SoC": (board("raspberry-pi-5"), "refuse", "board", "is no RK3588", "address of an RK3588"),
    "no device tree": (replace(OPI, compatible=(), model=""), "refuse", "board", "no device tree", "--runtime sim"),
    "its system": (ROCK, "ok", "system", "Debian GNU/Linux 11 (bullseye), kernel 5.10.110-rockchip, aarch64", ""),
    "driver 0.9.8": (OPI, "ok", "npu driver", "rknpu 0.9.8", ""),
    "driver 0.9.7": (replace(OPI, driver="0.9.7"), "warn", "npu driver", "0.9.8 is asked for", "update"),
    "driver 0.9.6": (replace(OPI, driver="0.9.6"), "warn", "npu driver", "0.9.8 is asked for", "update"),
    "driver 0.9.5": (replace(OPI, driver="0.9.5"), "refuse", "npu driver", "too old", "update"),
    "driver 0.8.2": (replace(OPI, driver="0.8.2"), "refuse", "npu driver", "too old", "update"),
    "driver of the future": (replace(OPI, driver="0.10.1"), "ok", "npu driver", "0.10.1", ""),
    "driver that hides": (replace(OPI, driver=None), "warn", "npu driver", "says its version nowhere", "debugfs"),
    "driver unseen": (replace(OPI, driver=None, as_root=False), "warn", "npu driver", "only be read as root", "sudo"),
    "no driver": (replace(OPI, driver=None, nodes=()), "refuse", "npu driver", "no rknpu driver", "Rockchip's kernel"),
    "mainline": (board("mainline"), "refuse", "npu driver", "rocket", "Rockchip's kernel"),
    "DRM kernel": (OPI, "ok", "npu node", "DRM kernel: /dev/dri/", ""),
    "DMA_HEAP kernel": (ROCK, "ok", "npu node", "DMA_HEAP kernel: /dev/rknpu (root, 600)", ""),
    "no node": (replace(OPI, nodes=()), "refuse", "npu node", "neither /dev/dri nor /dev/rknpu", "ls -l"),
    "DMA_HEAP without heaps": (replace(ROCK, nodes=DMA[:1]), "refuse", "npu node", "/dev/dma_heap is not", "CONFIG"),
    "a faked node": (
        replace(OPI, nodes=(*OPI.nodes, Node("/dev/rknpu", 0o660, "render", "dri/renderD129"))),
        *("warn", "npu node", "/dev/rknpu is only a link to dri/renderD129", "sudo rm /dev/rknpu"),
    ),
    "root's node": (ROCK, "info", "npu rights", "/dev/rknpu is root's alone", "udev rule"),
    "root's node, nobody to mend it": (
        replace(ROCK, systemd=None),
        *("warn", "npu rights", "/dev/rknpu is root's alone", "sudo chgrp radxa /dev/rknpu"),
    ),
    "root's heap": (
        replace(ROCK, nodes=(replace(DMA[0], mode=0o660, group="render"), *DMA[1:])),
        *("info", "npu rights", "/dev/dma_heap/system is root's alone", "udev rule"),
    ),
    "not in the group": (
        replace(OPI, groups=("orangepi", "sudo")),
        *("info", "npu rights", "orangepi is not in the group render", "usermod -aG render orangepi"),
    ),
    "used by a container": (
        replace(OPI, holders=(Holder(7, "frigate", "docker 1f03a2b4c5d6"),)),
        *("warn", "npu users", "frigate (pid 7) has the NPU open", "sudo docker stop 1f03a2b4c5d6"),
    ),
    "used by a service": (
        replace(OPI, holders=(Holder(7, "immich", "immich.service"),)),
        *("warn", "npu users", "immich (pid 7)", "sudo systemctl stop immich.service"),
    ),
    "used by a program": (
        replace(OPI, holders=(Holder(7, "python3", ""),)),
        *("warn", "npu users", "python3 (pid 7)", "sudo kill 7"),
    ),
    "its load": (OPI, "ok", "npu load", "Core0: 0%", ""),
    "slow NPU": (replace(OPI, clocks=SLOW_NPU), "warn", "clocks", "npu at 300 of 1000 MHz", "--no-pin"),
    "slow NPU, pinned when busy": (
        replace(OPI, clocks=SLOW_NPU, pinned=True),
        *("info", "clocks", "npu at 300 of 1000 MHz (simple_ondemand); pinned while the model is busy", ""),
    ),
    "slow NPU, nobody to pin it": (replace(ROCK, systemd=None), "warn", "clocks", "npu at 300", "echo performance"),
    "slow CPU": (ROCK, "warn", "clocks", "policy4 at 408 of 2256 MHz", "--no-pin"),
    "fast": (replace(OPI, clocks=SLOW_NPU[1:]), "ok", "clocks", "all at their highest", ""),
    "no DMC node": (ROCK, "info", "clocks", "no DMC node", "predict --bandwidth"),
    "hot": (replace(OPI, heat={"a": 40.0, "soc": 91.2}), "warn", "heat", "91 °C at most (soc)", "heat sink"),
    "cool": (replace(OPI, heat={"a": 40.0}), "ok", "heat", "40 °C", ""),
    "memory": (OPI, "ok", "memory", "of 17.2 GB available", ""),
    "disk": (OPI, "ok", "disk", "49.4 GB free at /opt/rkchatd", ""),
    "no inodes": (replace(OPI, inodes_free=0), "refuse", "disk", "0 inodes left", "delete"),
    "no room for a log": (replace(OPI, log_free=1 << 20), "warn", "log", "1 MB free at /var/log", "vacuum"),
    "an overlay": (replace(OPI, prefix_fs=OVERLAY), "refuse", "disk", "writes vanish at the reboot", "overlayroot"),
    "read-only": (replace(OPI, prefix_fs="ext4 ro,noatime"), "refuse", "disk", "read-only", "--prefix"),
    "remounted when broken": (replace(OPI, prefix_fs="ext4 rw,errors=remount-ro"), "ok", "disk", "GB free", ""),
    "a disk of Windows": (replace(OPI, prefix_fs="exfat rw"), "refuse", "disk", "is on exfat", "--prefix"),
    "noexec": (replace(OPI, prefix_fs="ext4 rw,nosuid,noexec"), "refuse", "disk", "noexec", "mount it without"),
    "root is an overlay": (replace(OPI, root_fs=OVERLAY), "warn", "root", "service is gone after a reboot", "findmnt"),
    "root is read-only": (replace(OPI, root_fs="ext4 ro"), "refuse", "root", "no service can be installed", "remount"),
    "no Python": (replace(OPI, python=None), "refuse", "python", "no python3", "apt-get install python3"),
    "Python 3.8": (replace(OPI, python=(3, 8)), "refuse", "python", "3.9 or newer", "newer image"),
    "Python 3.14": (replace(OPI, python=(3, 14)), "ok", "python", "Python 3.14", ""),
    "musl": (replace(OPI, libc="musl"), "refuse", "libc", "built for glibc", "Debian"),
    "old glibc": (replace(OPI, libc="glibc 2.27"), "refuse", "libc", "older than 2.28", "newer image"),
    "32 bits": (replace(OPI, bits=32), "refuse", "libc", "32 bits", "arm64"),
    "runtime 1.2": (ROCK, "info", "runtime", "/usr/lib/librkllmrt.so: librkllmrt 1.2.1", "brings its own 1.1.1"),
    "runtime 1.1": (replace(OPI, libraries=(Library("/a", "1.1.4"),)), "ok", "runtime", "/a: librkllmrt 1.1.4", ""),
    "runtime 1.10": (replace(OPI, libraries=(Library("/a", "1.10.0"),)), "info", "runtime", "does not speak", ""),
    "many runtimes": (
        replace(OPI, libraries=(Library("/a", "1.3.0"), Library("/b", "1.1.1"), Library("/c", "1.3.0"))),
        *("info", "runtime", "/a and 1 more: librkllmrt 1.3.0", ""),
    ),
    "few files": (replace(OPI, open_files=1024), "info", "limits", "1024 open files", "ulimit -n"),
    "root": (replace(OPI, sudo="root"), "ok", "rights", "root", ""),
    "sudo": (OPI, "ok", "rights", "sudo without a password", ""),
    "sudo asks": (replace(OPI, sudo="password"), "info", "rights", "for a password", "once"),
    "no sudo": (replace(OPI, sudo="none"), "refuse", "rights", "may not use sudo", "usermod -aG sudo orangepi"),
    "not seen as root": (replace(OPI, as_root=False), "info", "rights", "not looked at as root", "at a terminal"),
    "no systemd": (board("no-systemd"), "warn", "systemd", "does not come back after a reboot", "with systemd"),
    "degraded": (replace(OPI, system_state="degraded"), "info", "systemd", "degraded", "systemctl --failed"),
    "systemd": (OPI, "ok", "systemd", "systemd 252", ""),
    "clock behind": (replace(OPI, clock_error=-63115200.0), "warn", "clock", "2.0 years behind", "set-ntp"),
    "clock ahead": (replace(OPI, clock_error=7200.0), "warn", "clock", "2.0 hours ahead", "set-ntp"),
    "clock right": (replace(OPI, clock_error=2.0, rtc=False), "ok", "clock", "right, kept by NTP, no RTC", ""),
    "unclean boots": (replace(OPI, ends=("crash", "clean", "crash")), "warn", "power", "2 of the last 3", "supply"),
    "clean boots": (replace(OPI, ends=("clean",) * 4), "ok", "power", "the last 4 boots ended in a shutdown", ""),
    "no earlier boots": (replace(OPI, ends=()), "info", "power", "cannot be seen", "/var/log/journal"),
}


@pytest.mark.parametrize("name", JUDGED)
def test_a_fact_and_its_judgement(name: str) -> None:
    facts, level, fact, text, remedy = JUDGED[name]
    found = judge.judge(facts, PREFIX)
    fitting = [one for one in found if (one.level, one.fact) == (level, fact) and text in one.text]
    assert fitting, [one for one in found if one.fact == fact]
    assert remedy in fitting[0].remedy
    if level in ("refuse", "warn"):
        assert fitting[0].remedy
    else:
        assert level == "info" or not remedy


def test_worst_comes_first() -> None:
    for facts, *_ in JUDGED.values():
        levels = [judge.LEVELS.index(finding.level) for finding in judge.judge(facts, PREFIX)]
        assert levels == sorted(levels)


def test_a_good_board_gets_no_complaint() -> None:
    calm = replace(OPI, clocks=SLOW_NPU[1:], ends=("clean",))
    assert {finding.level for finding in judge.judge(calm, PREFIX)} == {"ok"}


def test_our_own_daemon_is_no_foreign_user_of_the_npu() -> None:
    mine = replace(OPI, holders=(Holder(9, "python3", "rkchatd.service"),))
    assert not [finding for finding in judge.judge(mine, PREFIX) if finding.fact == "npu users"]


@pytest.mark.parametrize(
    ("need", "level", "text"),
    [
        (Need(memory=3 * GIB), "ok", "the model needs 3.2"),
        (Need(memory=14 * GIB), "warn", "the NPU's pages cannot be swapped"),
        (Need(memory=16 * GIB), "refuse", "beside the system"),
        (Need(memory=5 * GIB), "info", "4.3 of one NPU address space"),
    ],
)
def test_memory_against_a_bundle(need: Need, level: str, text: str) -> None:
    """Swap does not count, however much there is."""
    facts = replace(OPI, memory={**OPI.memory, "SwapTotal": 64 * GIB})
    assert [f for f in judge.judge(facts, PREFIX, need) if (f.level, f.fact) == (level, "memory") and text in f.text]


def test_disk_and_port_against_a_deployment() -> None:
    found = judge.refusals(judge.judge(OPI, PREFIX, Need(disk=60 * GIB, port=22)))
    assert [finding.fact for finding in found] == ["disk", "port"]
    assert not judge.refusals(judge.judge(OPI, PREFIX, Need(disk=40 * GIB, port=8080)))


@pytest.mark.parametrize("prefix", ["/home/me/rkchatd", "/root/rkchatd", "/tmp/rkchatd", "/var/tmp/rkchatd"])
def test_where_the_service_could_not_look(prefix: str) -> None:
    (refusal,) = judge.refusals(judge.judge(OPI, prefix))
    assert "which the service does not see" in refusal.text
    assert not judge.refusals(judge.judge(replace(OPI, systemd=None, sudo="root"), prefix))


def test_another_disk_saves_a_release_but_not_its_service() -> None:
    """The prefix on a disk of its own, below a root that forgets."""
    found = judge.judge(replace(OPI, root_fs=OVERLAY), NVME)
    assert not judge.refusals(found)
    assert [finding.fact for finding in found if finding.level == "warn" and finding.fact != "clocks"] == ["root"]


def test_of_no_matter_to_the_simulated_runtime() -> None:
    found = judge.judge(board("mainline"), PREFIX, simulated=True)
    assert not judge.refusals(found)
    assert all(one.level in ("info", "ok") for one in found if one.npu)


def test_memory_of_a_bundle_is_its_weights_and_all_its_context(tmp_path: Path) -> None:
    """A model of 32 layers without grouped attention has 2 GB of keys and values, which a fixed margin would not be."""
    path = deploying.bundle(tmp_path, "mha", size=1000)
    manifest = json.loads((path / "rkbundle.json").read_text())
    shape = {"architecture": "llama", "layers": 32, "hidden": 4096, "intermediate": 11008, "heads": 32, "kv_heads": 32}
    manifest["model"] = {**shape, "head_dim": 128, "vocab_size": 32000, "context_length": 4096, "tied": False}
    (path / "rkbundle.json").write_text(json.dumps(manifest))
    bundle = bundles.read(path)
    assert 2 * GIB < release.memory_needed(bundle, simulated=True) < 2.2 * GIB
    assert release.memory_needed(bundle, simulated=True, context=1024) < 0.6 * GIB


# ------------------------------------------------------------------------------- a board, and files that are changed


@pytest.fixture
def sysroot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a Rock 5B, as `board up` makes them, for this machine's shell."""
    tree.whole(tmp_path / "tree", catalogue().board("rock-5b"))
    monkeypatch.setenv("RKBOARD_SYSROOT", str(tmp_path / "tree"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "tree"


def nobody(_question: str) -> None:
    return None


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
                "/usr/lib/librkllmrt.so": "1.2.1",
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


def test_who_has_the_npu_open(sysroot: Path) -> None:
    with (sysroot / "dev" / "rknpu").open():
        (holder,) = look().holders
    assert holder.pid == os.getpid()
    assert look().holders == ()


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


class Ordinary(LocalConnection):
    """This machine, as somebody who is not root."""

    @property
    def user_id(self) -> int:
        return 1000


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
    line = next(line for line in release.filled("rkchatd.service", {"PREFIX": NVME}).splitlines() if "guard" in line)
    assert line.startswith("ExecStartPre=")
    assert line.endswith(f" guard {NVME}")


def test_text_that_steers_a_terminal_is_not_printed() -> None:
    assert printable("a\x1b[2Jb\x9bc\r\u202ed\x00é °C\n\t→") == "a\ufffd[2Jb\ufffdc\ufffd\ufffdd\ufffdé °C\n\t→"
    command = "@click.command()\ndef c(): raise errors.DeployError('a\\x1bb')\n"
    code = f"import click; from rk3588 import errors, lazy\n{command}lazy.main(c, 'x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "Error: a\ufffdb\n")
