"""How much memory this machine, or the container this runs in, has for a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Bytes. ``free`` is what can be had without swapping, within the container's limit."""

    ram: int
    swap: int
    free: int

    @property
    def most(self) -> int:
        """What a conversion may take before the kernel ends it."""
        return self.free + self.swap


def machine() -> Memory:
    """From /proc/meminfo and, in a container, its control group."""
    facts = {}
    for line in (_PROC / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        facts[name] = int(rest.split()[0]) << 10
    ram, free, swap = facts["MemTotal"], facts["MemAvailable"], facts.get("SwapFree", 0)
    limit = _cgroup_value("memory.max", "memory/memory.limit_in_bytes")
    if limit is not None and limit < ram:
        used = _cgroup_value("memory.current", "memory/memory.usage_in_bytes")
        ram = limit
        free = min(free, max(limit - (used or 0), 0))
        swap_limit = _cgroup_value("memory.swap.max", "")
        swap = min(swap, swap_limit if swap_limit is not None else swap)
    return Memory(ram, swap, free)


def _cgroup_value(version2: str, version1: str) -> int | None:
    for name in filter(None, (version2, version1)):
        try:
            text = (_CGROUP / name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since it started."""
    try:
        for line in (_PROC / "vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
