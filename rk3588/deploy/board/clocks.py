"""Highest clocks while the NPU works, the old ones again when it rests: ``clocks.py [watch|restore] STATE-FILE``.

Runs as root beside the daemon, which needs no rights for it. What it changed stands in the state file, so that
`restore` can undo it after a crash. Paths are below ``$RKBOARD_SYSROOT``.
"""

from __future__ import annotations

import glob
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable

ROOT = os.environ.get("RKBOARD_SYSROOT", "")
GOVERNORS = (
    "/sys/class/devfreq/fdab0000.npu/governor",
    "/sys/class/devfreq/dmc/governor",
    "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor",
)
LOAD = "/sys/kernel/debug/rknpu/load"
TICK = 0.25  # seconds between looks at the load: a prefill takes longer
REST = 10.0  # seconds without load before the clocks are let go


def read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def write(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        print(f"cannot set {path} to {text}: {error.strerror}", flush=True)
        return False
    return True


def governors() -> Iterable[str]:
    return (path for pattern in GOVERNORS for path in sorted(glob.glob(ROOT + pattern)))


def busy() -> bool:
    """Whether any core of the NPU has work: ``Core0: 12%, …`` in the driver's own figures."""
    return any(int(share) > 0 for share in re.findall(r"(\d+)\s*%", read(ROOT + LOAD)))


def pin(state: str) -> None:
    """Every governor to performance; the old ones go into the state file first."""
    before = {path: read(path) for path in governors()}
    before = {path: governor for path, governor in before.items() if governor not in ("", "performance")}
    with open(state + ".new", "w", encoding="ascii") as file:
        json.dump(before, file)
    os.replace(state + ".new", state)
    for path in before:
        write(path, "performance")


def restore(state: str) -> None:
    try:
        with open(state, encoding="ascii") as file:
            before = json.load(file)
    except (OSError, ValueError):
        return
    for path, governor in before.items():
        write(path, governor)
    os.unlink(state)


def watch(state: str) -> None:
    restore(state)  # what an earlier run that was killed had changed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    last, pinned = float("-inf"), False
    try:
        while True:
            now = time.monotonic()
            if busy():
                last = now
            wanted = now - last < REST
            if wanted != pinned:
                (pin if wanted else restore)(state)
                pinned = wanted
            time.sleep(TICK)
    finally:
        restore(state)


if __name__ == "__main__":
    {"watch": watch, "restore": restore}[sys.argv[1]](sys.argv[2])
