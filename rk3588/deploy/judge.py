"""What the facts of a board mean for a language model on its NPU, and what to do about it: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from rk3588 import boards

from .facts import Facts

LEVELS = ("refuse", "warn", "info", "ok")  # worst first
OLDEST_DRIVER, GOOD_DRIVER = (0, 9, 6), (0, 9, 8)
OLDEST_PYTHON = (3, 9)
OLDEST_GLIBC = (2, 28)  # what our libraries for aarch64 are linked for
RESERVED = 768 << 20  # bytes of RAM for the system beside the model
HOT = 80.0  # °C
_CLOCK_OFF = 120.0  # seconds after which TLS and log times mislead
_OPEN_FILES = 102400  # the runtime maps a file per layer and core


@dataclass(frozen=True)
class Finding:
    """One judged fact. ``npu``: it is about the NPU, so it does not count for the simulated runtime."""

    level: str
    fact: str
    text: str
    remedy: str = ""
    npu: bool = False


@dataclass(frozen=True)
class Need:
    """What a bundle asks of a board, in bytes: of RAM when it runs, of disk while it is sent. ``port``: one to take."""

    memory: int = 0
    disk: int = 0
    port: int | None = None


def judge(facts: Facts, prefix: str, need: Need | None = None, simulated: bool = False) -> list[Finding]:
    """All findings, worst first. ``simulated``: the NPU is not to be used, so what is wrong with it is only told."""
    need = need or Need()
    parts = (_board, _driver, _nodes, _holders, _clocks, _memory, _disk, _software, _libraries, _rights, _condition)
    found = [finding for part in parts for finding in part(facts, prefix, need)]
    if simulated:
        found = [_told(finding) for finding in found]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def refusals(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "refuse"]


def _told(finding: Finding) -> Finding:
    if not finding.npu or finding.level == "ok":
        return finding
    return Finding("info", finding.fact, f"{finding.text} (of no matter to the simulated runtime)", npu=True)


def _board(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    known = boards.catalogue().identify(facts.compatible, facts.model)
    if known:
        yield Finding("ok", "board", f"{known.name}, {known.soc.name}", npu=True)
    elif any(entry.startswith(("rockchip,rk3588", "rockchip,rk3582")) for entry in facts.compatible):
        what = facts.model or facts.compatible[0]
        yield Finding("info", "board", f"an RK3588 board that the catalogue does not know ({what})", npu=True)
    elif facts.compatible or facts.model:
        what = facts.model or facts.compatible[0]
        yield Finding("refuse", "board", f"{what} is no RK3588", "give the address of an RK3588 board", npu=True)
    else:
        text = f"no device tree: this {facts.machine or 'machine'} is no RK3588 board"
        yield Finding("refuse", "board", text, "give the address of an RK3588 board, or --runtime sim", npu=True)


def _driver(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    if facts.rocket and facts.driver is None:
        yield Finding(
            "refuse",
            "npu driver",
            "mainline's `rocket` driver, which librkllmrt.so cannot use",
            "boot an image with Rockchip's kernel (5.10 or 6.1), which has the rknpu driver 0.9.8",
            npu=True,
        )
    elif facts.driver is None and facts.sudo == "none":
        remedy = "log in as a user with sudo, or look yourself: `cat /sys/kernel/debug/rknpu/version`"
        yield Finding("warn", "npu driver", "its version can only be read as root", remedy, npu=True)
    elif facts.driver is None:
        remedy = "boot an image with Rockchip's kernel; if it is one, look with `dmesg | grep -i rknpu`"
        yield Finding("refuse", "npu driver", "no rknpu driver is loaded", remedy, npu=True)
    else:
        version = tuple(int(part) for part in facts.driver.split("."))
        remedy = "update the board's kernel to one with RKNPU driver 0.9.8"
        if version < OLDEST_DRIVER:
            yield Finding("refuse", "npu driver", f"{facts.driver} is too old for RKLLM 1.1.1", remedy, npu=True)
        elif version < GOOD_DRIVER:
            yield Finding("warn", "npu driver", f"{facts.driver} works, but 0.9.8 is asked for", remedy, npu=True)
        else:
            yield Finding("ok", "npu driver", f"rknpu {facts.driver}", npu=True)


def _nodes(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    nodes = facts.npu_nodes
    if not nodes:
        remedy = "look with `ls -l /dev/dri/by-path /dev/rknpu` and `dmesg | grep -i rknpu`"
        yield Finding("refuse", "npu node", "neither /dev/dri nor /dev/rknpu has the NPU", remedy, npu=True)
        return
    kind = "DMA_HEAP" if all(node.path == "/dev/rknpu" for node in nodes) else "DRM"
    listed = ", ".join(f"{node.path} ({node.group}, {node.mode:o})" for node in nodes)
    yield Finding("ok", "npu node", f"{kind} kernel: {listed}", npu=True)
    if kind == "DMA_HEAP" and not any("dma_heap" in node.path for node in facts.nodes):
        remedy = "boot a kernel with CONFIG_DMABUF_HEAPS"
        yield Finding("refuse", "npu node", "/dev/rknpu is there, /dev/dma_heap is not", remedy, npu=True)
    barred = [node for node in nodes if node.mode & 0o060 != 0o060 or node.group == "root"]
    if barred:
        text = f"{barred[0].path} is root's alone"
        yield Finding("info", "npu rights", text, "a deployment installs a udev rule for it", npu=True)


def _holders(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    others = [holder for holder in facts.holders if holder.unit != "rkchatd.service"]
    for holder in others:
        stop = f"systemctl stop {holder.unit}" if holder.unit.endswith(".service") else f"kill {holder.pid}"
        yield Finding(
            "warn",
            "npu users",
            f"{holder.name} (pid {holder.pid}) has the NPU open: two users end in failed submits and hangs",
            f"stop it while a model runs: {stop}",
            npu=True,
        )


def _clocks(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    slow = [clock for clock in facts.clocks if clock.highest and clock.current < clock.highest]
    for clock in slow:
        text = f"{clock.name} at {_mhz(clock.current, clock.name)} of {_mhz(clock.highest, clock.name)} MHz"
        remedy = "a deployment pins it while the model is busy (unless --no-pin)"
        yield Finding("info", "clocks", f"{text} ({clock.governor})", remedy, npu=True)
    if facts.clocks and not slow:
        yield Finding("ok", "clocks", "all at their highest", npu=True)
    if facts.clocks and not any(clock.name == "dmc" for clock in facts.clocks):
        text = "no DMC node: the memory's clock can be neither seen nor pinned"
        yield Finding("info", "clocks", text, "predict with a measured bandwidth: rk3588 predict --bandwidth", npu=True)


def _mhz(value: int, name: str) -> int:
    return value // (1000 if name.startswith("policy") else 1_000_000)  # cpufreq counts in kHz


def _memory(facts: Facts, _prefix: str, need: Need) -> Iterator[Finding]:
    total, available = facts.memory.get("MemTotal"), facts.memory.get("MemAvailable")
    if total is None or available is None:
        return
    text = f"{_gb(available)} of {_gb(total)} GB available"
    if not need.memory:
        yield Finding("ok", "memory", text)
    elif need.memory + RESERVED > total:
        text = f"the model needs {_gb(need.memory)} GB beside the system, the board has {_gb(total)}"
        yield Finding("refuse", "memory", text, "choose a smaller model or dtype: rk3588 predict shows what fits")
    elif need.memory > available:
        # What runs there now may be the release that this one replaces.
        text = f"the model needs {_gb(need.memory)} GB, {text}; the NPU's pages cannot be swapped"
        yield Finding("warn", "memory", text, "stop what else runs there (swap and zram do not count)")
    else:
        yield Finding("ok", "memory", f"{text}, the model needs {_gb(need.memory)}")


def _disk(facts: Facts, prefix: str, need: Need) -> Iterator[Finding]:
    if facts.read_only:
        yield Finding(
            "refuse",
            "disk",
            f"{prefix} is on a read-only or volatile root ({facts.prefix_fs.split()[0]}): writes vanish at the reboot",
            "turn the overlay off (armbian-config, overlayroot.conf), or give --prefix on a real disk",
        )
    if facts.disk_free is None:
        return
    free = f"{_size(facts.disk_free)} free at {prefix}"
    if need.disk > facts.disk_free:
        text = f"{_size(need.disk)} are needed to send it, {free}"
        yield Finding("refuse", "disk", text, "rk3588 releases HOST shows what is there; or give --prefix")
    elif facts.inodes_free is not None and 0 < facts.inodes_free < 100:
        yield Finding("refuse", "disk", f"{facts.inodes_free} inodes left at {prefix}", "delete small files there")
    else:
        yield Finding("ok", "disk", free)


def _software(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    if facts.python is None:
        yield Finding("refuse", "python", "no python3", "sudo apt-get install python3")
    elif facts.python < OLDEST_PYTHON:
        text = f"Python {facts.python[0]}.{facts.python[1]}: the daemon needs 3.9 or newer"
        yield Finding("refuse", "python", text, "use a newer image (Debian 11, Ubuntu 22.04 or later)")
    else:
        yield Finding("ok", "python", f"Python {facts.python[0]}.{facts.python[1]}")
    if facts.libc.startswith("glibc "):
        version = tuple(int(part) for part in facts.libc[6:].split("."))
        if version < OLDEST_GLIBC:
            yield Finding("refuse", "libc", f"{facts.libc} is older than 2.28", "use a newer image")
        else:
            yield Finding("ok", "libc", facts.libc)
    else:
        text = f"{facts.libc or 'an unknown libc'}: librkllmrt.so is built for glibc"
        yield Finding("refuse", "libc", text, "use an image with glibc (Debian, Ubuntu, Armbian)")
    if facts.systemd is None:
        text = "no systemd: the daemon runs as this user and does not come back after a reboot"
        yield Finding("warn", "systemd", text, "use an image with systemd for a service that lasts")
    elif facts.system_state not in ("running", "starting", "initializing", ""):
        remedy = "look with `systemctl --failed`"
        yield Finding("info", "systemd", f"systemd {facts.systemd}, {facts.system_state}", remedy)
    else:
        yield Finding("ok", "systemd", f"systemd {facts.systemd}")


def _libraries(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    for library in facts.libraries:
        if library.version.startswith("1.1"):
            yield Finding("ok", "runtime", f"{library.path} is librkllmrt {library.version}", npu=True)
        else:
            text = f"{library.path} is librkllmrt {library.version}, which this toolkit does not speak"
            remedy = "nothing: a release brings its own 1.1.1 and leaves that one alone"
            yield Finding("info", "runtime", text, remedy, npu=True)


def _rights(facts: Facts, _prefix: str, need: Need) -> Iterator[Finding]:
    if need.port in facts.listening:
        text = f"another program listens on port {need.port}"
        yield Finding("refuse", "port", text, f"see which with `sudo ss -ltnp 'sport = :{need.port}'`, or give --port")
    if facts.sudo == "none" and facts.systemd is not None:
        remedy = f"log in as root, or let {facts.user or 'the user'} use sudo: usermod -aG sudo {facts.user or 'USER'}"
        yield Finding("refuse", "rights", f"{facts.user or 'this user'} may not use sudo", remedy)
    elif facts.sudo == "password":
        yield Finding("info", "rights", f"sudo asks {facts.user} for a password", "it is asked for once in a run")
    elif facts.sudo in ("root", "free"):
        yield Finding("ok", "rights", "root" if facts.sudo == "root" else "sudo without a password")
    if facts.open_files is not None and facts.open_files < _OPEN_FILES:
        text = f"{facts.open_files} open files at most: the runtime wants {_OPEN_FILES}"
        yield Finding("info", "limits", text, "the unit raises it; in a shell: ulimit -n, /etc/security/limits.conf")


def _condition(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    if facts.heat:
        zone, worst = max(facts.heat.items(), key=lambda item: item[1])
        level = "warn" if worst >= HOT else "ok"
        remedy = "give it a heat sink and a fan: hot boards slow down, then switch themselves off"
        yield Finding(level, "heat", f"{worst:.0f} °C at most ({zone})", remedy if worst >= HOT else "")
    if facts.crashes:
        text = f"{facts.crashes} of the last boots ended without a shutdown"
        yield Finding("warn", "power", text, "a weak supply does that under load: 5 V 4 A or USB-PD, a short cable")
    if facts.clock_error is not None and abs(facts.clock_error) > _CLOCK_OFF:
        text = f"the clock is {_span(abs(facts.clock_error))} {'ahead' if facts.clock_error > 0 else 'behind'}"
        yield Finding("warn", "clock", text, "sudo timedatectl set-ntp true; TLS and log times are wrong until then")
    elif facts.clock_error is not None:
        source = {True: ", kept by NTP", False: ", not kept by NTP", None: ""}[facts.synchronised]
        yield Finding("ok", "clock", f"right{source}{'' if facts.rtc else ', no RTC'}")


def _span(seconds: float) -> str:
    for unit, size in (("years", 31_557_600), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _gb(size: Optional[int]) -> str:
    return f"{(size or 0) / 1e9:.1f}"
