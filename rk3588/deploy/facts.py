"""What there is to know of a board. A fact is a command and a parser; gathering runs all commands in two round trips.

Nothing here changes the board. Paths in /sys, /proc and /dev are looked up below ``$RKBOARD_SYSROOT``: empty on a real
board, where its device tree lies on a simulated one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from rk3588.errors import ConnectError

from . import shell
from .connection import Connection
from .runtime import version_in

_SECONDS = 120.0
_MARK = "\x1e"  # between facts in the answer
_NODES = '"$R"/dev/dri/by-path/platform-fdab0000.npu-* "$R"/dev/dri/renderD129 "$R"/dev/rknpu'

Raw = Mapping[str, str]  # a fact's name → what its command printed


@dataclass(frozen=True)
class Node:
    """A device file: its group and permissions (0o660)."""

    path: str
    mode: int
    group: str


@dataclass(frozen=True)
class Clock:
    """One devfreq device (``npu``, ``dmc``) or cpufreq policy (``policy4``). Hz as the kernel says it."""

    name: str
    governor: str
    current: int
    highest: int


@dataclass(frozen=True)
class Holder:
    """A process that has the NPU open."""

    pid: int
    name: str
    unit: str


@dataclass(frozen=True)
class Library:
    """A librkllmrt.so somewhere on the board's system."""

    path: str
    version: str


@dataclass(frozen=True)
class Facts:
    """One board at one time. None or empty: not known, or not there. Sizes in bytes."""

    compatible: tuple[str, ...] = ()
    model: str = ""
    machine: str = ""
    kernel: str = ""
    system: str = ""
    driver: Optional[str] = None
    rocket: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    holders: tuple[Holder, ...] = ()
    clocks: tuple[Clock, ...] = ()
    capacity: Mapping[int, int] = field(default_factory=dict)  # CPU → cpu_capacity
    npu_load: str = ""
    heat: Mapping[str, float] = field(default_factory=dict)  # zone → °C
    memory: Mapping[str, int] = field(default_factory=dict)  # MemTotal, MemAvailable, SwapTotal
    disk_free: Optional[int] = None
    inodes_free: Optional[int] = None
    root_fs: str = ""  # type and options of /
    prefix_fs: str = ""  # the same of where releases go
    python: Optional[tuple[int, int]] = None
    python_path: str = ""
    libc: str = ""  # "glibc 2.36"
    libraries: tuple[Library, ...] = ()
    open_files: Optional[int] = None  # hard limit
    user: str = ""
    groups: tuple[str, ...] = ()
    known_groups: tuple[str, ...] = ()  # of render and video, those that exist
    systemd: Optional[int] = None
    system_state: str = ""
    clock_error: Optional[float] = None  # seconds the board is ahead of us
    synchronised: Optional[bool] = None
    rtc: bool = False
    crashes: Optional[int] = None  # boots before this one that did not end in a shutdown
    listening: tuple[int, ...] = ()  # TCP ports
    addresses: tuple[str, ...] = ()
    home: str = ""
    sudo: str = ""  # root, free, password or none

    @property
    def little_cpus(self) -> tuple[int, ...]:
        """The slow cluster; empty where all are alike or it is not known."""
        if len(set(self.capacity.values())) < 2:
            return ()
        least = min(self.capacity.values())
        return tuple(sorted(cpu for cpu, capacity in self.capacity.items() if capacity == least))

    @property
    def npu_nodes(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if "dma_heap" not in node.path)

    @property
    def read_only(self) -> bool:
        """Whether what is written now is gone after the next boot, or cannot be written at all."""
        kind, _, options = self.prefix_fs.partition(" ")
        return kind in ("overlay", "tmpfs", "squashfs") or "ro" in options.split(",")


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


def _whole(text: str) -> Optional[int]:
    match = re.match(r"\s*([0-9]+)", text)
    return int(match[1]) if match else None


def _kib(text: str) -> Optional[int]:
    number = _whole(text)
    return None if number is None else number << 10


def _yes_or_no(text: str) -> Optional[bool]:
    return {"yes": True, "no": False}.get(_one(text))


def _driver(text: str) -> Optional[str]:
    match = re.search(r"\bv?([0-9]+\.[0-9]+\.[0-9]+)", text)
    return match[1] if match else None


def _nodes(text: str) -> tuple[Node, ...]:
    rows = re.findall(r"^([0-7]{3,4}) (\S+) (\S.*)$", text, re.MULTILINE)
    return tuple(Node(path, int(mode, 8), group) for mode, group, path in rows)


def _holders(text: str) -> tuple[Holder, ...]:
    rows = re.findall(r"^([0-9]+)\t([^\t\n]*)\t(.*)$", text, re.MULTILINE)
    return tuple(Holder(int(pid), name, group.rsplit("/", 1)[-1]) for pid, name, group in rows)


def _clocks(text: str) -> tuple[Clock, ...]:
    found = []
    for line in _lines(text):
        name, governor, current, steps = (line + "|||").split("|")[:4]
        numbers = [int(step) for step in re.findall(r"[0-9]+", steps)]
        if governor:
            found.append(Clock(name, governor, _whole(current) or 0, max(numbers, default=0)))
    return tuple(found)


def _capacity(text: str) -> dict[int, int]:
    return {int(cpu): int(value) for cpu, value in re.findall(r"^([0-9]+) ([0-9]+)$", text, re.MULTILINE)}


def _heat(text: str) -> dict[str, float]:
    rows = re.findall(r"^(\S.*) (-?[0-9]+)$", text, re.MULTILINE)
    return {zone: int(millis) / 1000 for zone, millis in rows}


def _memory(text: str) -> dict[str, int]:
    rows = re.findall(r"^(MemTotal|MemAvailable|SwapTotal):\s+([0-9]+) kB", text, re.MULTILINE)
    return {name: int(kib) << 10 for name, kib in rows}


def _python(text: str) -> Optional[tuple[int, int]]:
    match = re.search(r"Python ([0-9]+)\.([0-9]+)", text)
    return (int(match[1]), int(match[2])) if match else None


def _libc(text: str) -> str:
    if "musl" in text:
        return "musl"
    match = re.search(r"([0-9]+\.[0-9]+)", text)
    return f"glibc {match[1]}" if match else ""


def _libraries(text: str) -> tuple[Library, ...]:
    found: dict[str, list[str]] = {}
    for line in _lines(text):
        path, _, said = line.partition("\t")
        found.setdefault(path, []).append(said)
    return tuple(Library(path, version_in("\n".join(said))) for path, said in found.items())


def _listening(text: str) -> tuple[int, ...]:
    """Of /proc/net/tcp and tcp6: state 0A is LISTEN."""
    rows = re.findall(r"^\s*[0-9]+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A ", text, re.MULTILINE)
    return tuple(sorted({int(port, 16) for port in rows}))


def _crashes(text: str) -> Optional[int]:
    lines = _lines(text)
    return sum(line == "crash" for line in lines) if lines else None


_DEVICE_TREE = 'cat "$R"/sys/firmware/devicetree/base/{0} || cat "$R"/proc/device-tree/{0}'

# What each may print is shown by tests/boards/*.json.
FACTS: tuple[Fact, ...] = (
    Fact("compatible", f"({_DEVICE_TREE.format('compatible')}) | tr '\\0' '\\n'", _lines),
    Fact("model", f"({_DEVICE_TREE.format('model')}) | tr -d '\\0'", _one),
    Fact("machine", "uname -m", _one),
    Fact("kernel", "uname -r", _one),
    Fact("system", '. /etc/os-release; echo "$PRETTY_NAME"', _one),
    Fact(
        "driver",
        'cat "$R"/sys/kernel/debug/rknpu/version || cat "$R"/sys/module/rknpu/version || '
        "dmesg | grep -i 'initialized rknpu'",
        _driver,
        root=True,
    ),
    Fact("rocket", 'ls -d "$R"/dev/accel/accel0 "$R"/sys/bus/platform/drivers/rocket', _lines),
    Fact(
        "nodes",
        f'for n in {_NODES} "$R"/dev/dma_heap/*; do '
        '[ -e "$n" ] && echo "$(stat -L -c "%a %G" "$n") ${n#"$R"}"; done',
        _nodes,
    ),
    Fact(
        "holders",
        f'set --; for n in {_NODES}; do [ -e "$n" ] && set -- "$@" -o -lname "$(readlink -f "$n")"; done; '
        '[ $# -gt 0 ] && find /proc/[0-9]*/fd -maxdepth 1 "(" -false "$@" ")" | cut -d/ -f3 | sort -un | '
        "while read -r p; do "
        "printf '%s\\t%s\\t%s\\n' \"$p\" \"$(cat /proc/$p/comm)\" \"$(tail -n 1 /proc/$p/cgroup)\"; done",
        _holders,
        root=True,
    ),
    Fact(
        "clocks",
        'for n in npu dmc; do d="$R"/sys/class/devfreq/$n; [ $n = npu ] && d="$R"/sys/class/devfreq/fdab0000.npu; '
        '[ -d $d ] && echo "$n|$(cat $d/governor)|$(cat $d/cur_freq)|$(cat $d/available_frequencies)"; done; '
        'for d in "$R"/sys/devices/system/cpu/cpufreq/policy*; do [ -d $d ] && '
        'echo "${d##*/}|$(cat $d/scaling_governor)|$(cat $d/scaling_cur_freq)|$(cat $d/cpuinfo_max_freq)"; done',
        _clocks,
    ),
    Fact(
        "capacity",
        'for c in "$R"/sys/devices/system/cpu/cpu[0-9]*; do echo "${c##*/cpu} $(cat $c/cpu_capacity)"; done',
        _capacity,
    ),
    Fact("npu_load", 'cat "$R"/sys/kernel/debug/rknpu/load', _one, root=True),
    Fact(
        "heat",
        'for z in "$R"/sys/class/thermal/thermal_zone*; do [ -d $z ] && echo "$(cat $z/type) $(cat $z/temp)"; done',
        _heat,
    ),
    Fact("memory", 'cat "$R"/proc/meminfo || cat /proc/meminfo', _memory),
    Fact("disk_free", "df -Pk \"$P\" | tail -n 1 | awk '{print $4}'", _kib),
    Fact("inodes_free", "df -Pi \"$P\" | tail -n 1 | awk '{print $4}'", _whole),
    Fact("root_fs", "findmnt -no FSTYPE,OPTIONS /", lambda text: " ".join(text.split())),
    Fact("prefix_fs", 'findmnt -no FSTYPE,OPTIONS -T "$P"', lambda text: " ".join(text.split())),
    Fact("python", "python3 -V", _python),
    Fact("python_path", "python3 -c 'import sys; print(sys.executable)'", _one),
    Fact("libc", "getconf GNU_LIBC_VERSION || ldd --version 2>&1 | head -n 1", _libc),
    Fact(
        "libraries",
        "find /usr /lib /opt /home /root -xdev -name 'librkllmrt*.so*' -type f -not -path \"$W/*\" | "
        "while read -r f; do grep -aoE '(rkllm-runtime|librkllmrt) version: [0-9.]+|rkllm_[a-z_]+' \"$f\" | sort -u | "
        'while read -r s; do printf "%s\\t%s\\n" "$f" "$s"; done; done',
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
    Fact("rtc", "ls /dev/rtc*", lambda text: bool(_lines(text))),
    Fact(
        "crashes",
        # The last thing a journal gets in an orderly shutdown is the journal's own farewell.
        "for b in 1 2 3 4 5; do last=$(journalctl -q -b -$b -n 3 -o cat) || break; [ -n \"$last\" ] || break; "
        "case $last in *'Journal stopped'*|*systemd-shutdown*) echo clean;; *) echo crash;; esac; done",
        _crashes,
        root=True,
        slow=True,
    ),
    Fact("listening", "cat /proc/net/tcp /proc/net/tcp6 | grep ' 0A '", _listening),
    Fact("addresses", "hostname -I | tr ' ' '\\n'", _lines),
    Fact("home", 'echo "$HOME"', _one),
)  # fmt: skip


def gather(connection: Connection, prefix: str, thorough: bool = False) -> dict[str, str]:
    """The raw answers of all facts, for releases below ``prefix``; the slow ones only if it is to be ``thorough``.

    Facts that need root are left out where the user has no way to become it.
    """
    wants_password = connection.needs_password()
    sudo = {True: "password", False: "free", None: "none"}[wants_password]
    raw = {"sudo": "root" if connection.user_id == 0 else sudo}
    before = time.time()
    clock = connection.run("date +%s.%N").text.strip()
    known = re.fullmatch(r"[0-9]+\.[0-9]+", clock)
    raw["clock_error"] = f"{float(clock) - (before + time.time()) / 2:.3f}" if known else ""
    for root in (False, True):
        if root and raw["sudo"] == "none":
            continue
        wanted = [fact for fact in FACTS if fact.root is root and (thorough or not fact.slow)]
        raw.update(_ask(connection, wanted, prefix, root))
    return raw


def _ask(connection: Connection, wanted: list[Fact], prefix: str, root: bool) -> dict[str, str]:
    mark = shell.command("printf", "%s", _MARK)
    lines = [
        'R="${RKBOARD_SYSROOT:-}"',
        f"W={shell.command(prefix)}",
        'P=$W; while [ ! -d "$P" ]; do P=$(dirname "$P"); done',
        *(f"({fact.command}) 2>/dev/null </dev/null; {mark}" for fact in wanted),
    ]
    result = connection.run("sh -s", root=root, stdin=("\n".join(lines) + "\n").encode(), timeout=_SECONDS)
    answers = result.text.split(_MARK)
    if len(answers) != len(wanted) + 1:
        raise ConnectError(f"{connection.name} does not answer like a POSIX shell: {result.complaint}")
    return {fact.name: answer for fact, answer in zip(wanted, answers)}


def parse(raw: Raw) -> Facts:
    """Facts from raw answers; what is not in ``raw`` keeps its default."""
    values = {fact.name: fact.parse(raw[fact.name]) for fact in FACTS if fact.name in raw}
    values["sudo"] = raw.get("sudo", "")
    values["clock_error"] = float(raw["clock_error"]) if raw.get("clock_error") else None
    assert set(values) <= {item.name for item in fields(Facts)}
    return Facts(**values)
