"""The doctor: facts in, findings out; and what it makes of a board whose files are changed by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rk3588 import bundle as bundles
from rk3588.deploy import judge, sizes
from rk3588.deploy.facts import Clock, Facts, Holder, Library, Node
from rk3588.deploy.findings import LEVELS, Need
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
    "mainline, which may have another": (board("mainline"), "refuse", "npu driver", "rocket", "DKMS"),
    "mainline with the vendor's driver": (
        replace(OPI, kernel="7.0.3-edge-rockchip64"),
        *("info", "npu driver", "rknpu 0.9.8 on kernel 7.0.3-edge-rockchip64, which is not Rockchip's", ""),
    ),
    "mainline with both drivers": (
        replace(OPI, kernel="6.18.2", rocket=("/dev/accel/accel0", "/sys/bus/platform/drivers/rocket")),
        *("warn", "npu driver", "two drivers on one device", "blacklist rocket"),
    ),
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
    "no DMC node, and slow": (replace(ROCK, memory_speed=None), "info", "clocks", "no DMC node", "ATF has the DMC"),
    "memory as it should be": (replace(OPI, memory_speed=24_000_000_000), "ok", "memory speed", "24.0 GB/s", ""),
    "memory at half": (
        replace(OPI, memory_speed=10_100_000_000),
        *("warn", "memory speed", "measured 10.1 GB/s, half of the 21 and more that an RK3588 has at 2112 MHz", "pin"),
    ),
    "memory of which the clock is not seen": (
        replace(ROCK, memory_speed=6_000_000_000),
        *("warn", "memory speed", "6.0 GB/s, less than half of the 21", "rk3588 predict --bandwidth 6.0"),
    ),
    "memory of which the clock cannot rise": (
        replace(ROCK, memory_speed=14_000_000_000),
        *("warn", "memory speed", "14.0 GB/s, two thirds of the 21", "ATF has the DMC service"),
    ),
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
    "runtime 1.2": (ROCK, "ok", "runtime", "/usr/lib/librkllmrt.so: librkllmrt 1.2.1", ""),
    "runtime 1.0": (replace(OPI, libraries=(Library("/a", "1.0.1"),)), "info", "runtime", "1.0.1", "brings its own"),
    "runtime by its functions": (
        replace(OPI, libraries=(Library("/a", "1.2.1 or newer"),)), "ok", "runtime", "librkllmrt 1.2.1 or newer", "",
    ),
    "runtime 1.1": (replace(OPI, libraries=(Library("/a", "1.1.4"),)), "ok", "runtime", "/a: librkllmrt 1.1.4", ""),
    "runtime 1.10": (replace(OPI, libraries=(Library("/a", "1.10.0"),)), "info", "runtime", "does not speak", ""),
    "many runtimes": (
        replace(OPI, libraries=(Library("/a", "1.3.0"), Library("/b", "1.1.1"), Library("/c", "1.3.0"))),
        *("ok", "runtime", "/a and 1 more: librkllmrt 1.3.0", ""),
    ),
    "few files": (replace(OPI, open_files=1024), "info", "limits", "1024 open files", "the unit raises it"),
    "few files, no unit": (replace(OPI, open_files=1024, systemd=None), "info", "limits", "1024", "orangepi - nofile"),
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
    "one boot": (replace(OPI, ends=("crash",)), "warn", "power", "the last boot ended without a shutdown", "supply"),
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
        levels = [LEVELS.index(finding.level) for finding in judge.judge(facts, PREFIX)]
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
        (Need(memory=16 * GIB, context=9000, context_memory=9 * GIB), "refuse", "a context of 9000 tokens takes 9.7"),
        (Need(memory=36 * GIB, context=9000, context_memory=9 * GIB), "refuse", "the model needs 38.7"),
        (Need(memory=5 * GIB), "info", "4.3 of one NPU address space"),
    ],
)
def test_memory_against_a_bundle(need: Need, level: str, text: str) -> None:
    """Swap does not count, however much there is."""
    facts = replace(OPI, memory={**OPI.memory, "SwapTotal": 64 * GIB})
    assert [f for f in judge.judge(facts, PREFIX, need) if (f.level, f.fact) == (level, "memory") and text in f.text]


WANTED = Need(runtime="1.2.3", toolkit="1.2.1", model="Qwen3-1.7B")


@pytest.mark.parametrize(
    ("need", "level", "fact", "text", "remedy"),
    [
        (WANTED, "ok", "model", "toolkit 1.2.1 under librkllmrt 1.2.3: seen to load (jaylfc/taOS#1732)", ""),
        (replace(WANTED, runtime="1.1.1"), "refuse", "model", "no model of a newer toolkit", "1.2.1 to 1.2.3 or"),
        (replace(WANTED, runtime="1.1.1", claimed=True), "warn", "model", "newer toolkit", "with --toolkit-version"),
        (replace(WANTED, runtime="1.3.1", toolkit="1.1.1"), "info", "model", "nobody has told of it", ""),
        (replace(WANTED, runtime="1.3.0"), "warn", "runtime", "ends in SIGILL on an RK3588 (#518)", "take 1.3.1"),
        (replace(WANTED, model="DeepSeek-R1-Distill-Qwen-7B"), "warn", "runtime", "[PAD…] (#424, #467)", "take 1.2.2"),
        (replace(WANTED, toolkit=""), "info", "model", "nothing says which rkllm-toolkit", "with --toolkit-version"),
        (replace(WANTED, runtime=""), "info", "model", "for librkllmrt 1.2.1 to 1.2.3", "--runtime FILE"),
    ],
)
def test_runtime_and_model_against_each_other(need: Need, level: str, fact: str, text: str, remedy: str) -> None:
    found = [one for one in judge.judge(OPI, PREFIX, need) if (one.level, one.fact) == (level, fact)]
    assert [one for one in found if text in one.text and remedy in one.remedy], found
    assert all(one.remedy for one in found if level in ("refuse", "warn"))


def test_a_runtime_against_driver_and_chip() -> None:
    need, opi5 = Need(runtime="1.3.1"), ("xunlong,orangepi-5", "rockchip,rk3588s")
    old = judge.judge(replace(OPI, driver="0.9.7"), PREFIX, need)
    assert [one for one in old if one.level == "warn" and "wants rknpu 0.9.8" in one.text]
    small = judge.judge(replace(OPI, compatible=opi5, model=""), PREFIX, need)
    assert [one for one in small if one.level == "info" and "SIGBUS" in one.text]
    assert not [one for one in judge.judge(OPI, PREFIX, need) if "SIGBUS" in one.text or "wants rknpu" in one.text]


def test_what_is_measured_elsewhere_says_nothing() -> None:
    """A simulated board's memory is that of the machine it runs on."""
    slow = replace(OPI, memory_speed=1_000_000)
    for elsewhere in (replace(slow, machine="x86_64"), replace(slow, simulated=True)):
        assert not [one for one in judge.judge(elsewhere, PREFIX) if one.fact == "memory speed"]


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
    assert 2 * GIB < sizes.memory_needed(bundle, simulated=True) < 2.2 * GIB
    assert sizes.memory_needed(bundle, simulated=True, context=1024) < 0.6 * GIB
