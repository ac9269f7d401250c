"""What the facts of a board mean for a language model on its NPU, and what to do about it: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from rk3588 import boards, rkllm
from rk3588.rkllm import NPU_WINDOW

from . import judge_npu
from .facts import Facts
from .findings import LEVELS, Finding, Need

OLDEST_PYTHON = (3, 9)
OLDEST_GLIBC = (2, 28)  # what our libraries for aarch64 are linked for
HOT = 80.0  # °C
_CLOCK_OFF = 120.0  # seconds after which TLS and log times mislead
_LOG_ROOM = 5 << 20  # bytes: Armbian keeps /var/log in a small compressed RAM disk
_INODES = 100
_VOLATILE = ("overlay", "tmpfs", "squashfs")
_PLAIN = ("vfat", "exfat", "msdos", "ntfs", "ntfs3", "fuseblk")
HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # by ProtectHome and PrivateTmp of the unit


def judge(facts: Facts, prefix: str, need: Need | None = None, simulated: bool = False) -> list[Finding]:
    """All findings, worst first. ``simulated``: the NPU is not to be used, so what is wrong with it is only told."""
    need = need or Need()
    npu = (judge_npu.driver, judge_npu.device_nodes, judge_npu.holders, judge_npu.clocks)
    parts = (_board, *npu, _memory, _disk, _software, judge_npu.libraries, judge_npu.pairing, _rights, _condition)
    found = [finding for part in parts for finding in part(facts, prefix, need)]
    if simulated:
        found = [_as_info_where_simulated(finding) for finding in found]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def refusals(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "refuse"]


def _as_info_where_simulated(finding: Finding) -> Finding:
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
    if facts.kernel:
        yield Finding("ok", "system", f"{facts.system or 'Linux'}, kernel {facts.kernel}, {facts.machine}")


def _memory(facts: Facts, _prefix: str, need: Need) -> Iterator[Finding]:
    total, available = facts.memory.get("MemTotal"), facts.memory.get("MemAvailable")
    if total is None or available is None:
        return
    text = f"{_gb(available)} of {_gb(total)} GB available"
    if not need.memory:
        yield Finding("ok", "memory", text)
    elif need.memory + rkllm.SYSTEM_BYTES > total:
        remedy = "choose a smaller model or dtype: rk3588 predict shows what fits"
        what = "the model"
        if need.context and need.memory - need.context_memory + rkllm.SYSTEM_BYTES <= total:
            what, remedy = f"a context of {need.context} tokens", "give a smaller one (--set context=N)"
            what += f" takes {_gb(need.context_memory)} GB: with it the model"
        text = f"{what} needs {_gb(need.memory)} GB beside the system, the board has {_gb(total)}"
        yield Finding("refuse", "memory", text, remedy)
    elif need.memory > available:
        # What runs there now may be the release that this one replaces.
        text = f"the model needs {_gb(need.memory)} GB, {text}; the NPU's pages cannot be swapped"
        yield Finding("warn", "memory", text, "stop what else runs there (swap and zram do not count)")
    else:
        yield Finding("ok", "memory", f"{text}, the model needs {_gb(need.memory)}")
    if need.memory > NPU_WINDOW:
        text = f"{_gb(need.memory)} GB are more than the {_gb(NPU_WINDOW)} of one NPU address space"
        remedy = "where it ends in `failed to malloc npu memory`: a smaller --set context, a smaller model"
        yield Finding("info", "memory", text, remedy, npu=True)


def _disk(facts: Facts, prefix: str, need: Need) -> Iterator[Finding]:
    yield from _file_systems(facts, prefix)
    if facts.log_free is not None and facts.log_free < _LOG_ROOM:
        text = f"{_size(facts.log_free)} free at /var/log: what goes wrong may not be written down"
        yield Finding("warn", "log", text, "sudo journalctl --vacuum-size=10M; SystemMaxUse=10M in journald.conf")
    if facts.disk_free is None:
        return
    free = f"{_size(facts.disk_free)} free at {prefix}"
    if need.disk > facts.disk_free:
        text = f"{_size(need.disk)} are needed to send it, {free}"
        yield Finding("refuse", "disk", text, "rk3588 releases HOST shows what is there; or give --prefix")
    elif facts.inodes_free is not None and facts.inodes_free < _INODES:
        yield Finding("refuse", "disk", f"{facts.inodes_free} inodes left at {prefix}", "delete small files there")
    else:
        yield Finding("ok", "disk", free)


def _file_systems(facts: Facts, prefix: str) -> Iterator[Finding]:
    """Whether what is written stays, and can be run."""
    kind, options = _mount(facts.prefix_fs)
    other = "give --prefix on another disk"
    if kind in _VOLATILE or "ro" in options:
        text = f"{prefix} is on a read-only or volatile root ({kind}): writes vanish at the reboot"
        yield Finding("refuse", "disk", text, "turn the overlay off (armbian-config, overlayroot.conf), or " + other)
    elif kind in _PLAIN:
        yield Finding("refuse", "disk", f"{prefix} is on {kind}, which has no links and no rights", other)
    elif "noexec" in options:
        text = f"{prefix} is mounted noexec: no library can be loaded from there"
        yield Finding("refuse", "disk", text, f"mount it without noexec, or {other}")
    if facts.systemd is None:
        return
    hidden = next((top for top in HIDDEN if f"{prefix}/".startswith(top)), "")
    if hidden:
        text = f"{prefix} is below {hidden}, which the service does not see"
        yield Finding("refuse", "disk", text, "give another --prefix, as in /opt/rkchatd")
    kind, options = _mount(facts.root_fs)
    if "ro" in options:
        text = f"/ is read-only ({kind}): no service can be installed"
        yield Finding("refuse", "root", text, "sudo mount -o remount,rw /; where it turns back, dmesg says why")
    elif kind in _VOLATILE:
        text = f"/ is {kind}: if its changes are kept in memory, the service is gone after a reboot"
        yield Finding("warn", "root", text, "look with `findmnt /`; turn it off (armbian-config, overlayroot.conf)")


def _mount(text: str) -> tuple[str, list[str]]:
    kind, _, options = text.partition(" ")
    return kind, options.split(",")


def _software(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    if facts.python is None:
        yield Finding("refuse", "python", "no python3", "sudo apt-get install python3")
    elif facts.python < OLDEST_PYTHON:
        text = f"Python {facts.python[0]}.{facts.python[1]}: the daemon needs 3.9 or newer"
        yield Finding("refuse", "python", text, "use a newer image (Debian 11, Ubuntu 22.04 or later)")
    else:
        yield Finding("ok", "python", f"Python {facts.python[0]}.{facts.python[1]}")
    if facts.bits == 32:
        text = "programs here have 32 bits, librkllmrt.so has 64"
        yield Finding("refuse", "libc", text, "use an image for arm64", npu=True)
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
    if not facts.as_root:
        text = "not looked at as root: the driver's version, who uses the NPU, other runtimes, earlier boots"
        remedy = "log in as root or as a user with sudo, at a terminal if it asks for a password"
        yield Finding("info", "rights", text, remedy)
    if facts.open_files is not None and facts.open_files < rkllm.OPEN_FILES:
        text = f"{facts.open_files} open files at most: the runtime wants {rkllm.OPEN_FILES}"
        remedy = "the unit raises it; for a shell: /etc/security/limits.conf"
        if facts.systemd is None:
            remedy = f"in /etc/security/limits.conf: {facts.user or 'USER'} - nofile {rkllm.OPEN_FILES}"
        yield Finding("info", "limits", text, remedy)


def _condition(facts: Facts, _prefix: str, _need: Need) -> Iterator[Finding]:
    if facts.heat:
        zone, worst = max(facts.heat.items(), key=lambda item: item[1])
        level = "warn" if worst >= HOT else "ok"
        remedy = "give it a heat sink and a fan: hot boards slow down, then switch themselves off"
        yield Finding(level, "heat", f"{worst:.0f} °C at most ({zone})", remedy if worst >= HOT else "")
    if facts.ends is not None:
        yield _power(facts.ends)
    if facts.clock_error is not None and abs(facts.clock_error) > _CLOCK_OFF:
        text = f"the clock is {_span(abs(facts.clock_error))} {'ahead' if facts.clock_error > 0 else 'behind'}"
        yield Finding("warn", "clock", text, "sudo timedatectl set-ntp true; TLS and log times are wrong until then")
    elif facts.clock_error is not None:
        source = {True: ", kept by NTP", False: ", not kept by NTP", None: ""}[facts.synchronised]
        yield Finding("ok", "clock", f"right{source}{'' if facts.rtc else ', no RTC'}")


def _power(ends: tuple[str, ...]) -> Finding:
    crashes, boots = ends.count("crash"), f"the last {len(ends)} boots" if len(ends) > 1 else "the last boot"
    if crashes:
        text = f"{f'{crashes} of ' if len(ends) > 1 else ''}{boots} ended without a shutdown"
        return Finding("warn", "power", text, "a weak supply does that under load: 5 V 4 A or USB-PD, a short cable")
    if ends:
        return Finding("ok", "power", f"{boots} ended in a shutdown")
    remedy = "the journal keeps them with `sudo mkdir -p /var/log/journal`"
    return Finding("info", "power", "nothing is kept of earlier boots: unclean reboots cannot be seen", remedy)


def _span(seconds: float) -> str:
    for unit, size in (("years", 31_557_600), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _gb(size: Optional[int]) -> str:
    return f"{(size or 0) / 1e9:.1f}"
