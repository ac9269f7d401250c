"""How facts of a board are found out: a command and a parser each; gathering runs all commands in two round trips.

Nothing here changes the board. Paths in /sys, /proc and /dev are looked up below ``$RKBOARD_SYSROOT``: empty on a real
board, where its device tree lies on a simulated one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Optional

from rk3588.errors import ConnectError, DeployError, printable
from rk3588.rkllm import version_in

from . import layout, shell
from .connection import Connection
from .facts import Clock, Facts, Holder, Library, Node

_SECONDS = 120.0
_THOROUGH_SECONDS = 600.0  # every disk is searched
_MARK = "\x1e"  # between facts in the answer
# `npu` prints the NPU's device files. A DRM kernel has it among other render nodes, a DMA_HEAP kernel by a name.
_PREAMBLE = """
R="${RKBOARD_SYSROOT:-}"
npu() {
  for n in "$R"/dev/dri/by-path/platform-fdab0000.npu-* "$R"/dev/rknpu; do [ -e "$n" ] && echo "$n"; done
  for n in "$R"/dev/dri/renderD*; do
    driver="$R/sys/class/drm/${n##*/}/device/uevent"
    if [ -e "$driver" ]; then grep -qi '^DRIVER=rknpu' "$driver" && echo "$n"; continue; fi
    [ -e "$n" ] && [ "${n##*/}" = renderD129 ] && echo "$n"
  done
}
serves=$(sed -n 's/^ExecStartPre=.* guard //p' "$R"/etc/systemd/system/rkchatd.service 2>/dev/null)
"""
# Where releases lie when nobody says: where the service has them, else as a new deployment would put them.
_PREFIX = f"""
if [ ! -d "$R"/run/systemd/system ]; then W="$HOME"/{layout.USER_PREFIX}
else W="${{serves:-{layout.PREFIX}}}"; fi
"""

Raw = Mapping[str, str]  # a fact's name → what its command printed


@dataclass(frozen=True)
class Fact:
    name: str
    command: str
    parse: Callable[[str], Any]
    root: bool = False
    slow: bool = False  # for the doctor only: a deployment does not need it


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _one(text: str) -> str:
    return next(iter(_lines(text)), "")


def _there(text: str) -> bool:
    return bool(text.strip())


def _inodes(text: str) -> Optional[int]:
    """Of a file system's total and free inodes the latter; None where it does not count them (btrfs)."""
    match = re.match(r"\s*([0-9]{1,18}) ([0-9]{1,18})", text)
    return int(match[2]) if match and int(match[1]) else None


def _joined(text: str) -> str:
    return " ".join(text.split())


def _whole(text: str) -> Optional[int]:
    match = re.match(r"\s*([0-9]{1,18})(?![0-9])", text)  # int() refuses what is longer than 4300 digits
    return int(match[1]) if match else None


def _kib(text: str) -> Optional[int]:
    number = _whole(text)
    return None if number is None else number << 10


def _yes_or_no(text: str) -> Optional[bool]:
    return {"yes": True, "no": False}.get(_one(text))


def _driver(text: str) -> Optional[str]:
    match = re.search(r"\bv?([0-9]{1,18}\.[0-9]{1,18}\.[0-9]{1,18})", text)
    return match[1] if match else None


def _nodes(text: str) -> tuple[Node, ...]:
    rows = re.findall(r"^([0-7]{3,4}) (\S+) (\S[^\t\n]*)(?:\t(.*))?$", text, re.MULTILINE)
    return tuple(Node(path, int(mode, 8), group, link) for mode, group, path, link in rows)


def _holders(text: str) -> tuple[Holder, ...]:
    rows = re.findall(r"^([0-9]{1,18})\t([^\t\n]*)\t(.*)$", text, re.MULTILINE)
    return tuple(Holder(int(pid), name, _unit(group)) for pid, name, group in rows)


def _unit(group: str) -> str:
    """What to stop, by a process's control group."""
    container = re.search(r"(docker|libpod)[-/]([0-9a-f]{12})", group)
    if container:
        return f"{container[1].replace('libpod', 'podman')} {container[2]}"
    service = re.search(r":/system\.slice/(?:.*/)?([^/]+\.service)", group)
    return service[1] if service else ""


def _clocks(text: str) -> tuple[Clock, ...]:
    found = []
    for line in _lines(text):
        name, governor, current, steps = (line + "|||").split("|")[:4]
        numbers = [int(step) for step in re.findall(r"(?<![0-9])[0-9]{1,18}(?![0-9])", steps)]
        if governor:
            found.append(Clock(name, governor, _whole(current) or 0, max(numbers, default=0)))
    return tuple(found)


def _capacity(text: str) -> dict[int, int]:
    return {int(cpu): int(value) for cpu, value in re.findall(r"^([0-9]{1,18}) ([0-9]{1,18})$", text, re.MULTILINE)}


def _heat(text: str) -> dict[str, float]:
    rows = re.findall(r"^(\S.*) (-?[0-9]{1,18})$", text, re.MULTILINE)
    return {zone: int(millis) / 1000 for zone, millis in rows}


def _memory(text: str) -> dict[str, int]:
    rows = re.findall(r"^(MemTotal|MemAvailable|SwapTotal):\s+([0-9]{1,18}) kB", text, re.MULTILINE)
    return {name: int(kib) << 10 for name, kib in rows}


def _python(text: str) -> Optional[tuple[int, int]]:
    match = re.search(r"Python ([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", text)
    return (int(match[1]), int(match[2])) if match else None


def _libc(text: str) -> str:
    if "musl" in text:
        return "musl"
    match = re.search(r"([0-9]{1,18}\.[0-9]{1,18})", text)
    return f"glibc {match[1]}" if match else ""


def _libraries(text: str) -> tuple[Library, ...]:
    found: dict[str, list[str]] = {}
    for line in _lines(text):
        path, _, said = line.partition("\t")
        found.setdefault(path, []).append(said)
    return tuple(Library(path, version_in("\n".join(said))) for path, said in found.items())


def _listening(text: str) -> tuple[int, ...]:
    """Of /proc/net/tcp and tcp6: state 0A is LISTEN."""
    rows = re.findall(r"^\s*[0-9]{1,18}: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A ", text, re.MULTILINE)
    return tuple(sorted({int(port, 16) for port in rows}))


def _ends(text: str) -> tuple[str, ...]:
    return tuple(line for line in _lines(text) if line in ("clean", "crash"))


_DEVICE_TREE = 'cat "$R"/sys/firmware/devicetree/base/{0} || cat "$R"/proc/device-tree/{0}'
# The system's own Python, where it is to run a service of the system: a user's may lie where the service cannot look.
_PYTHON = '[ -d "$R"/run/systemd/system ] && PATH=/usr/local/bin:/usr/bin:/bin; python3'

# The best of each core, as a little one copies slower and clocks take a while to rise; twice what is copied is moved.
_COPY = """
import os, time
size = 32 << 20
source, target, best = bytearray(size), bytearray(size), 0.0
for cpu in os.sched_getaffinity(0):
    os.sched_setaffinity(0, [cpu])
    end = time.monotonic() + 0.15
    while time.monotonic() < end:
        start = time.perf_counter()
        target[:] = source
        best = max(best, 2 * size / (time.perf_counter() - start))
print(int(best))
"""
# What each may print is shown by tests/boards/*.json.
FACTS: tuple[Fact, ...] = (
    Fact("simulated", '[ -d "$R"/run/systemd/system ] || echo "$R"', _there),
    Fact("prefix", 'printf "%s" "$W"', str),
    Fact("serves", 'echo "$serves"', _one),
    Fact("compatible", f"({_DEVICE_TREE.format('compatible')}) | tr '\\0' '\\n'", _lines),
    Fact("model", f"({_DEVICE_TREE.format('model')}) | tr -d '\\0'", _one),
    Fact("machine", "uname -m", _one),
    Fact("kernel", "uname -r", _one),
    Fact("system", '. /etc/os-release; echo "$PRETTY_NAME"', _one),
    Fact(
        "driver",
        'for f in kernel/debug/rknpu module/rknpu; do cat "$R"/sys/$f/version && exit; done; '
        'cat "$R"/proc/rknpu/version || { dmesg; journalctl -q -k -b -o cat; } | grep -i -m 1 "initialized rknpu"',
        _driver,
        root=True,
    ),
    Fact("rocket", 'ls -d "$R"/dev/accel/accel0 "$R"/sys/bus/platform/drivers/rocket', _lines),
    Fact(
        "nodes",
        '{ npu; ls -d "$R"/dev/dma_heap/*; } | while read -r n; do '
        'case $n in */by-path/*) link=;; *) link=$(readlink "$n");; esac; '
        'printf "%s %s\\t%s\\n" "$(stat -L -c "%a %G" "$n")" "${n#"$R"}" "$link"; done',
        _nodes,
    ),
    Fact(
        "holders",
        'set --; for n in $(npu); do set -- "$@" -o -lname "$(readlink -f "$n")"; done; '
        '[ $# -gt 0 ] && find /proc/[0-9]*/fd -maxdepth 1 "(" -false "$@" ")" | cut -d/ -f3 | sort -un | '
        "while read -r p; do "
        "printf '%s\\t%s\\t%s\\n' \"$p\" \"$(cat /proc/$p/comm)\" \"$(tail -n 1 /proc/$p/cgroup)\"; done",
        _holders,
        root=True,
    ),
    Fact(
        "clocks",
        'for n in npu dmc; do d="$R"/sys/class/devfreq/$n; [ $n = npu ] && d="$R"/sys/class/devfreq/fdab0000.npu; '
        '[ -d $d ] && echo "$n|$(cat $d/governor)|$(cat $d/cur_freq)|'
        '$(cat $d/available_frequencies || cat $d/max_freq)"; done; '
        'for d in "$R"/sys/devices/system/cpu/cpufreq/policy*; do [ -d $d ] && '
        'echo "${d##*/}|$(cat $d/scaling_governor)|$(cat $d/scaling_cur_freq)|$(cat $d/cpuinfo_max_freq)"; done',
        _clocks,
    ),
    Fact("pinned", "systemctl is-active rkchatd-clocks.service", lambda text: _one(text) == "active"),
    Fact(
        "capacity",
        'for c in "$R"/sys/devices/system/cpu/cpu[0-9]*; do echo "${c##*/cpu} $(cat $c/cpu_capacity)"; done',
        _capacity,
    ),
    Fact("npu_load", 'cat "$R"/sys/kernel/debug/rknpu/load || cat "$R"/proc/rknpu/load', _joined, root=True),
    Fact(
        "heat",
        'for z in "$R"/sys/class/thermal/thermal_zone*; do [ -d $z ] && echo "$(cat $z/type) $(cat $z/temp)"; done',
        _heat,
    ),
    Fact("memory", 'cat "$R"/proc/meminfo || cat /proc/meminfo', _memory),
    Fact("memory_speed", f"{_PYTHON} -I -c '{_COPY}'", _whole, slow=True),
    Fact("disk_free", "df -Pk \"$P\" | tail -n 1 | awk '{print $4}'", _kib),
    Fact("inodes_free", "df -Pi \"$P\" | tail -n 1 | awk '{print $2, $4}'", _inodes),
    Fact("log_free", "df -Pk /var/log | tail -n 1 | awk '{print $4}'", _kib),
    Fact("root_fs", "findmnt -no FSTYPE,OPTIONS /", _joined),
    Fact("prefix_fs", 'findmnt -no FSTYPE,OPTIONS -T "$P"', _joined),
    Fact("python", f"{_PYTHON} -I -V", _python),
    Fact("python_path", f"{_PYTHON} -I -c 'import sys; print(sys.executable)'", _one),
    Fact("libc", "getconf GNU_LIBC_VERSION || ldd --version 2>&1 | head -n 1", _libc),
    Fact("bits", "getconf LONG_BIT", _whole),
    Fact(
        "libraries",
        # On every disk, and not in snaps. A simulated board's lie in its tree.
        "{ echo \"${R:-/}\"; [ -n \"$R\" ] || "
        "awk '$1 ~ \"^/dev/\" && $2 !~ \"^/(boot|snap)\" {print $2}' /proc/mounts; } | sort -u | while read -r m; do "
        "timeout 60 find \"$m\" -xdev -name 'librkllmrt*.so*' -type f -not -path \"$W/*\"; done | sort -u | "
        "while read -r f; do "
        "grep -aoE '(rkllm-runtime|librkllmrt) version: [0-9.]+(b[0-9]+)?|rkllm_[a-z_]+' \"$f\" | sort -u | "
        'while read -r s; do printf "%s\\t%s\\n" "${f#"$R"}" "$s"; done; done',
        _libraries,
        root=True,
        slow=True,
    ),
    Fact("open_files", "ulimit -Hn", _whole),
    Fact("user", "id -un", _one),
    Fact("groups", "id -Gn", lambda text: tuple(text.split())),
    Fact("known_groups", "getent group render video | cut -d: -f1", _lines),
    Fact("systemd", '[ -d "$R"/run/systemd/system ] && systemctl --version | head -n 1 | cut -d" " -f2', _whole),
    Fact("system_state", '[ -d "$R"/run/systemd/system ] && systemctl is-system-running', _one),
    Fact("synchronised", "timedatectl show -p NTPSynchronized --value", _yes_or_no),
    Fact("rtc", 'ls "$R"/dev/rtc*', _there),
    Fact(
        "ends",
        # The last thing a journal gets in an orderly shutdown is the journal's own farewell. Where it keeps no boot but
        # this one, wtmp has boots and shutdowns, the last first.
        "n=0; for b in 1 2 3 4 5; do last=$(journalctl -q -b -$b -n 3 -o cat) || break; "
        "[ -n \"$last\" ] || break; n=$b; "
        "case $last in *'Journal stopped'*|*systemd-shutdown*) echo clean;; *) echo crash;; esac; done; "
        '[ $n -gt 0 ] || last -x reboot shutdown | awk \'$1 == "reboot" || $1 == "shutdown" '
        '{ if (later == "reboot") print ($1 == "shutdown" ? "clean" : "crash"); later = $1 }\' | head -n 5',
        _ends,
        root=True,
        slow=True,
    ),
    Fact("listening", "cat /proc/net/tcp /proc/net/tcp6 | grep ' 0A '", _listening),
    Fact("addresses", "hostname -I | tr ' ' '\\n'", _lines),
    Fact("home", 'echo "$HOME"', _one),
)  # fmt: skip


def gather(connection: Connection, prefix: Optional[str] = None, thorough: bool = False) -> dict[str, str]:
    """The raw answers of all facts; the slow ones only if it is to be ``thorough``.

    ``prefix``: where releases lie, if not where the board says. Facts that need root are left out where the user has no
    way to become it; a doctor goes without them, too, where nobody can give the password.
    """
    as_root = connection.user_id == 0
    before = time.time()
    clock = connection.run("date +%s.%N").text.strip()
    known = re.fullmatch(r"[0-9]{1,18}\.[0-9]{1,18}", clock)
    raw = {"clock_error": f"{float(clock) - (before + time.time()) / 2:.3f}" if known else ""}
    wanted = [fact for fact in FACTS if thorough or not fact.slow]
    rooted = [fact for fact in wanted if fact.root]
    raw.update(_ask(connection, [fact for fact in wanted if not fact.root], prefix, root=False))
    if as_root or raw["simulated"].strip():
        # Everything of a simulated board is its user's. This machine's sudo has no part in it.
        raw["sudo"] = "root" if as_root else "none"
        return {**raw, **_ask(connection, rooted, raw["prefix"], root=False)}
    raw["sudo"] = {True: "password", False: "free", None: "none"}[connection.needs_password()]
    if raw["sudo"] == "none":
        return raw
    try:
        raw.update(_ask(connection, rooted, raw["prefix"], root=True))
    except DeployError:
        if not thorough and raw["systemd"].strip():
            raise
    return raw


def _ask(connection: Connection, wanted: list[Fact], prefix: Optional[str], root: bool) -> dict[str, str]:
    mark = shell.command("printf", "%s", _MARK)
    lines = [
        _PREAMBLE,
        _PREFIX if prefix is None else f"W={shell.command(prefix)}",
        'P=$W; while [ ! -d "$P" ]; do P=$(dirname "$P"); done',
        *(f"({fact.command}) 2>/dev/null </dev/null; {mark}" for fact in wanted),
    ]
    seconds = _THOROUGH_SECONDS if any(fact.slow for fact in wanted) else _SECONDS
    result = connection.run("sh -s", root=root, stdin=("\n".join(lines) + "\n").encode(), timeout=seconds)
    answers = [printable(answer) for answer in result.text.split(_MARK)]
    if len(answers) != len(wanted) + 1:
        raise ConnectError(f"{connection.name} does not answer like a POSIX shell: {result.error_line}")
    return {fact.name: answer for fact, answer in zip(wanted, answers)}


def parse(raw: Raw) -> Facts:
    """Facts from raw answers; what is not in ``raw`` keeps its default."""
    values = {fact.name: fact.parse(raw[fact.name]) for fact in FACTS if fact.name in raw}
    values["sudo"] = raw.get("sudo", "")
    values["as_root"] = "driver" in raw
    values["clock_error"] = float(raw["clock_error"]) if raw.get("clock_error") else None
    assert set(values) <= {item.name for item in fields(Facts)}
    return Facts(**values)
