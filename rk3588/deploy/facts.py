"""What there is to know of a board; ``probes`` finds it out, ``judge`` says what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional


@dataclass(frozen=True)
class Node:
    """A device file: its group and permissions (0o660); ``link``: what it points to, if it is only a link."""

    path: str
    mode: int
    group: str
    link: str = ""


@dataclass(frozen=True)
class Clock:
    """One devfreq device (``npu``, ``dmc``) or cpufreq policy (``policy4``). Hz as the kernel says it."""

    name: str
    governor: str
    current: int
    highest: int


@dataclass(frozen=True)
class Holder:
    """A process that has the NPU open. ``unit``: the system's service it belongs to, or ``docker ID``."""

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

    simulated: bool = False  # a board of ``rk3588 board up`` that needs no root
    prefix: str = ""  # where releases lie or would lie
    serves: str = ""  # the prefix that the daemon's unit names; "" where there is no unit
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
    pinned: bool = False  # rkchatd-clocks runs
    capacity: Mapping[int, int] = field(default_factory=dict)  # CPU → cpu_capacity
    npu_load: str = ""
    heat: Mapping[str, float] = field(default_factory=dict)  # zone → °C
    memory: Mapping[str, int] = field(default_factory=dict)  # MemTotal, MemAvailable, SwapTotal
    memory_speed: Optional[int] = None  # bytes/s that its fastest core moves when it copies; None: not measured
    disk_free: Optional[int] = None
    inodes_free: Optional[int] = None
    log_free: Optional[int] = None  # below /var/log
    root_fs: str = ""  # type and options of /
    prefix_fs: str = ""  # the same of where releases go
    python: Optional[tuple[int, int]] = None
    python_path: str = ""
    libc: str = ""  # "glibc 2.36"
    bits: Optional[int] = None  # of programs: 32 on some images, whatever the kernel has
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
    ends: Optional[tuple[str, ...]] = None  # of the boots before this one, clean or crash; None: not looked at
    listening: tuple[int, ...] = ()  # TCP ports
    addresses: tuple[str, ...] = ()
    home: str = ""
    sudo: str = ""  # root, free, password or none
    as_root: bool = False  # whether what only root can see was looked at

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
