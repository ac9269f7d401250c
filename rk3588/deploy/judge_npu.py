"""What the facts of a board's NPU mean: its driver, device files, users, clocks and memory, and its runtimes."""

from __future__ import annotations

from collections.abc import Iterator

from rk3588 import boards, compatibility, rkllm

from .facts import Clock, Facts
from .findings import Finding, Need

OLDEST_DRIVER, GOOD_DRIVER = (0, 9, 6), (0, 9, 8)
_VENDOR_KERNELS = ("5.10.", "6.1.")
_VENDOR_KERNEL = "boot an image with Rockchip's kernel (5.10 or 6.1), which has the rknpu driver 0.9.8"
_DKMS = "build the vendor's rknpu for this one (DKMS: lurenJBD/rknpu-mainline-dkms, w568w/rknpu-module)"
# Of the least that decoding was seen to get. One core of a Turing RK1 copies 12 GB/s, which moves 24.
_SLOW_MEMORY = 0.75


def driver(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    if facts.rocket and facts.driver is None:
        text = "mainline's `rocket` driver, which librkllmrt.so cannot use"
        yield Finding("refuse", "npu driver", text, f"{_VENDOR_KERNEL}, or {_DKMS}", npu=True)
    elif facts.driver is None and not facts.as_root:
        remedy = "let the user use sudo, or look yourself: `sudo cat /sys/kernel/debug/rknpu/version`"
        yield Finding("warn", "npu driver", "its version can only be read as root", remedy, npu=True)
    elif facts.driver is None and facts.npu_nodes:
        remedy = "`mount -t debugfs debugfs /sys/kernel/debug` as root, then look again; it has to be 0.9.6 or newer"
        yield Finding("warn", "npu driver", "it is there, but says its version nowhere", remedy, npu=True)
    elif facts.driver is None:
        remedy = f"{_VENDOR_KERNEL} (if it is one, look with `dmesg | grep -i rknpu`), or {_DKMS}"
        yield Finding("refuse", "npu driver", "no rknpu driver is loaded", remedy, npu=True)
    else:
        yield from _beside_mainline(facts)
        version = tuple(int(part) for part in facts.driver.split("."))
        remedy = "update the board's kernel to one with RKNPU driver 0.9.8"
        if version < OLDEST_DRIVER:
            text = f"{facts.driver} is too old for RKLLM {rkllm.SPOKEN_RELEASES}"
            yield Finding("refuse", "npu driver", text, remedy, npu=True)
        elif version < GOOD_DRIVER:
            yield Finding("warn", "npu driver", f"{facts.driver} works, but 0.9.8 is asked for", remedy, npu=True)
        else:
            yield Finding("ok", "npu driver", f"rknpu {facts.driver}", npu=True)
    if facts.npu_load:
        yield Finding("ok", "npu load", facts.npu_load.removeprefix("NPU load: "), npu=True)


def _beside_mainline(facts: Facts) -> Iterator[Finding]:
    """The vendor's driver in a kernel that is not the vendor's: seen to work, with less than that has."""
    if any(path.endswith("accel0") for path in facts.rocket):
        text = "mainline's `rocket` has the NPU as well (/dev/accel/accel0): two drivers on one device"
        remedy = "echo 'blacklist rocket' | sudo tee /etc/modprobe.d/rocket.conf, then reboot"
        yield Finding("warn", "npu driver", text, remedy, npu=True)
    if facts.kernel and not facts.kernel.startswith(_VENDOR_KERNELS):
        text = (
            f"rknpu {facts.driver} on kernel {facts.kernel}, which is not Rockchip's (5.10, 6.1): owners run "
            "librkllmrt in that way, up to kernel 7.0; clocks are usually not controlled there"
        )
        yield Finding("info", "npu driver", text, "", npu=True)


def device_nodes(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    nodes = facts.npu_nodes
    if not nodes:
        remedy = "look with `ls -l /dev/dri/by-path /dev/rknpu` and `dmesg | grep -i rknpu`"
        yield Finding("refuse", "npu node", "neither /dev/dri nor /dev/rknpu has the NPU", remedy, npu=True)
        return
    kind = "DMA_HEAP" if all(node.path == "/dev/rknpu" for node in nodes) else "DRM"
    listed = ", ".join(f"{node.path} ({node.group}, {node.mode:o})" for node in nodes if not node.link)
    yield Finding("ok", "npu node", f"{kind} kernel: {listed}", npu=True)
    for node in nodes:
        if node.link:
            text = f"{node.path} is only a link to {node.link}, which no driver made"
            yield Finding("warn", "npu node", text, f"sudo rm {node.path}: the runtime finds the NPU itself", npu=True)
    if kind == "DMA_HEAP" and not any("dma_heap" in node.path for node in facts.nodes):
        remedy = "boot a kernel with CONFIG_DMABUF_HEAPS"
        yield Finding("refuse", "npu node", "/dev/rknpu is there, /dev/dma_heap is not", remedy, npu=True)
    needed = facts.nodes if kind == "DMA_HEAP" else nodes
    barred = [node for node in needed if node.mode & 0o060 != 0o060 or node.group == "root"]
    if barred and facts.systemd is not None:
        text = f"{barred[0].path} is root's alone"
        yield Finding("info", "npu rights", text, "a deployment installs a udev rule for it", npu=True)
    elif barred and facts.sudo != "root":
        remedy = f"sudo chgrp {facts.user or 'USER'} {barred[0].path} && sudo chmod 660 {barred[0].path}"
        yield Finding("warn", "npu rights", f"{barred[0].path} is root's alone", remedy, npu=True)
    elif facts.sudo != "root" and not {node.group for node in needed} <= set(facts.groups):
        (group, *_) = sorted({node.group for node in needed} - set(facts.groups))
        text = f"{facts.user or 'this user'} is not in the group {group}, which may open the NPU"
        remedy = f"for models run by hand: sudo usermod -aG {group} {facts.user or 'USER'}; a deployed daemon has it"
        yield Finding("info", "npu rights", text, remedy, npu=True)


def holders(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    for holder in facts.holders:
        if holder.unit == "rkchatd.service":
            continue
        stop = f"kill {holder.pid}"
        if holder.unit:
            stop = f"systemctl stop {holder.unit}" if holder.unit.endswith(".service") else holder.unit
            stop = stop.replace("docker ", "docker stop ").replace("podman ", "podman stop ")
        yield Finding(
            "warn",
            "npu users",
            f"{holder.name} (pid {holder.pid}) has the NPU open: two users end in failed submits and hangs",
            f"stop it while a model runs: sudo {stop}",
            npu=True,
        )


def clocks(facts: Facts, _prefix: str, need: Need) -> Iterator[Finding]:
    slow = ", ".join(_slow(clock) for clock in facts.clocks if clock.highest and clock.current < clock.highest)
    if slow and (facts.pinned or need.pins):
        yield Finding("info", "clocks", f"{slow}; pinned while the model is busy", npu=True)
    elif slow:
        remedy = "a deployment pins them while the model is busy, and restores them (unless --no-pin)"
        if facts.systemd is None:
            remedy = "as root: echo performance > /sys/class/devfreq/fdab0000.npu/governor, and so on"
        yield Finding("warn", "clocks", slow, remedy, npu=True)
    if facts.clocks and not slow:
        yield Finding("ok", "clocks", "all at their highest", npu=True)
    yield from _memory_speed(facts)


def _memory_speed(facts: Facts) -> Iterator[Finding]:
    """Decoding is as fast as the memory: what it does, and whether its clock can be set."""
    controlled = any(clock.name == "dmc" for clock in facts.clocks)
    if facts.clocks and not controlled:
        text = "no DMC node: the memory's clock can be neither seen nor pinned"
        remedy = "predict with a measured bandwidth: rk3588 predict --bandwidth"
        if not facts.memory_speed:
            remedy += "; a bootloader whose ATF has the DMC service brings it (dmesg | grep -i dmc)"
        yield Finding("info", "clocks", text, remedy, npu=True)
    if facts.memory_speed is None or facts.simulated or facts.machine != "aarch64":
        return  # that of another machine
    known = boards.catalogue().identify(facts.compatible, facts.model)
    soc = known.soc if known else boards.catalogue().socs["RK3588"]
    highest = max(soc.ddr_gb_s)
    usual, speed = soc.bandwidth(highest)[0], facts.memory_speed / 1e9
    if speed >= _SLOW_MEMORY * usual:
        yield Finding("ok", "memory speed", f"measured {speed:.1f} GB/s", npu=True)
        return
    part = "less than half" if speed < 0.4 * usual else "half" if speed < 0.6 * usual else "two thirds"
    text = f"measured {speed:.1f} GB/s, {part} of the {usual:g} and more that an {soc.name} has at {highest} MHz"
    remedy = "pin the memory's clock (a deployment does, unless --no-pin)"
    if not controlled:
        remedy = "a bootloader whose ATF has the DMC service lets the clock rise (dmesg | grep -i dmc)"
    remedy += f"; some boards have half the bus; until then: rk3588 predict --bandwidth {speed:.1f}"
    yield Finding("warn", "memory speed", text, remedy, npu=True)


def pairing(facts: Facts, _prefix: str, need: Need) -> Iterator[Finding]:
    """Runtime, model and driver against each other, as far as somebody has written of it."""
    if need.toolkit and not need.runtime:
        able = compatibility.runtimes_told(need.toolkit) or "of the same version"
        text = f"of rkllm-toolkit {need.toolkit}, for librkllmrt {able}"
        yield Finding("info", "model", text, "give --runtime FILE to have it compared", npu=True)
    if not need.runtime:
        return
    if need.toolkit:
        found = compatibility.pairing(need.runtime, need.toolkit)
        level, remedy = found.level, ""
        if level == "refuse":
            remedy = f"give librkllmrt {compatibility.runtimes_told(need.toolkit)}, or another model"
            if need.claimed:  # a name may be wrong
                level = "warn"
                remedy += "; only a name says which toolkit: where that is wrong, adopt it with --toolkit-version"
        yield Finding(level, "model", found.text, remedy, npu=True)
    elif need.model:
        text = f"nothing says which rkllm-toolkit wrote it: whether librkllmrt {need.runtime} loads it, a trial shows"
        yield Finding("info", "model", text, "adopt it with --toolkit-version where you know it", npu=True)
    known = boards.catalogue().identify(facts.compatible, facts.model)
    for defect in compatibility.defects(need.runtime, need.model, known.soc.name if known else ""):
        text = f"librkllmrt {need.runtime}: {defect.text} ({defect.source})"
        yield Finding(defect.level, "runtime", text, defect.remedy, npu=True)
    wanted, source = compatibility.driver_for(need.runtime)
    if facts.driver and tuple(int(part) for part in facts.driver.split(".")) < wanted:
        least = ".".join(map(str, wanted))
        text = f"librkllmrt {need.runtime} wants rknpu {least} ({source}), and here is {facts.driver}"
        remedy = f"update the board's kernel to one with RKNPU driver {least}"
        yield Finding("warn", "npu driver", text, remedy, npu=True)


def _slow(clock: Clock) -> str:
    megahertz = 1000 if clock.name.startswith("policy") else 1_000_000  # cpufreq counts in kHz
    now, highest = clock.current // megahertz, clock.highest // megahertz
    return f"{clock.name} at {now} of {highest} MHz ({clock.governor})"


def libraries(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    """By version: a container's image may have many copies."""
    for version in dict.fromkeys(library.version for library in facts.libraries):
        path, *more = (library.path for library in facts.libraries if library.version == version)
        text = f"{path}{f' and {len(more)} more' if more else ''}: librkllmrt {version}"
        if rkllm.is_spoken(version):
            yield Finding("ok", "runtime", text, npu=True)
        else:
            remedy = "nothing: a release brings its own and leaves that one alone"
            yield Finding("info", "runtime", f"{text}, which this toolkit does not speak", remedy, npu=True)
