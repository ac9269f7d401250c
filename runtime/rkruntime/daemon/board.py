"""The board as the daemon can see it: load, clocks, temperatures, memory, out of /sys and /proc, where they are.

What cannot be read is left out. The load of the NPU lies in debugfs, which on most boards only root may read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

from rk3588 import boards, predict, shape
from rk3588.bundle import Bundle
from rk3588.errors import RkError
from rk3588.predict import PREDICTED, Estimate, Workload
from rk3588.rkllm import MAX_CONTEXT

ROOT = Path("/")
REFERENCE = "rock-5b"  # the board that is predicted for where this is none that is known
_MOST_BYTES = 4096  # of a file in /sys
_MOST = 32  # zones, clocks
_NPU = "fdab0000.npu"
_DEVFREQ = {_NPU: "npu", "dmc": "memory"}
_NUMBER = re.compile(r"\s*(-?[0-9]{1,18})(?![0-9])")


class Clock(NamedTuple):
    name: str
    hertz: int
    max_hertz: Optional[int]
    governor: str


@dataclass(frozen=True)
class Readings:
    """How things are now."""

    npu_load: tuple[float, ...] = ()  # percent, by core
    clocks: tuple[Clock, ...] = ()
    temperatures: Mapping[str, float] = field(default_factory=dict)  # °C by zone
    memory: Mapping[str, int] = field(default_factory=dict)  # bytes: total, available
    resident: Mapping[str, int] = field(default_factory=dict)  # bytes: supervisor, worker

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        clocks = [{"name": c.name, "hertz": c.hertz, "max_hertz": c.max_hertz, "governor": c.governor}
                  for c in self.clocks]  # fmt: skip
        return {
            "npu_load": list(self.npu_load), "clocks": clocks, "temperatures": dict(self.temperatures),
            "memory": dict(self.memory), "resident": dict(self.resident),
        }  # fmt: skip


def readings(root: Path = ROOT, worker: Optional[int] = None) -> Readings:
    """Read everything anew; some sensors take milliseconds to answer, so not on the event loop."""
    return Readings(_npu_load(root), tuple(_clocks(root)), _temperatures(root), _memory(root), _resident(root, worker))


def driver(root: Path = ROOT) -> Optional[str]:
    """Version of the NPU's driver, where a file says it."""
    for name in ("sys/kernel/debug/rknpu/version", "sys/module/rknpu/version", "proc/rknpu/version"):
        found = re.search(r"\bv?([0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9})", _text(root / name))
        if found:
            return found[1]
    return None


def _npu_load(root: Path) -> tuple[float, ...]:
    for name in ("sys/kernel/debug/rknpu/load", "proc/rknpu/load"):
        said = _text(root / name)
        cores = re.findall(r"Core[0-9]{1,2}:\s*([0-9]{1,3})%", said)
        found = cores or re.findall(r"NPU load:\s*([0-9]{1,3})%", said)
        if found:
            return tuple(float(load) for load in found[:_MOST])
    return ()


def _clocks(root: Path) -> Iterable[Clock]:
    for folder, name in _DEVFREQ.items():
        at = root / "sys/class/devfreq" / folder
        hertz = _whole(at / "cur_freq")
        if hertz is not None:
            yield Clock(name, hertz, _whole(at / "max_freq"), _word(at / "governor"))
    for at in _sorted(root / "sys/devices/system/cpu/cpufreq", "policy"):
        kilohertz, most = _whole(at / "scaling_cur_freq"), _whole(at / "cpuinfo_max_freq")
        if kilohertz is not None:
            cpus = _text(at / "related_cpus").split()
            name = f"cpu {cpus[0]}-{cpus[-1]}" if len(cpus) > 1 else f"cpu {at.name[len('policy'):]}"
            yield Clock(name, kilohertz * 1000, most and most * 1000, _word(at / "scaling_governor"))


def _temperatures(root: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for at in _sorted(root / "sys/class/thermal", "thermal_zone"):
        millis, name = _whole(at / "temp"), _word(at / "type").removesuffix("-thermal")
        if millis is not None and name:
            found[name if name not in found else f"{name} {at.name[len('thermal_zone'):]}"] = millis / 1000
    return found


def _memory(root: Path) -> dict[str, int]:
    names = {"MemTotal": "total", "MemAvailable": "available"}
    rows = re.findall(r"^(MemTotal|MemAvailable):\s+([0-9]{1,18}) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return {names[name]: int(kib) << 10 for name, kib in rows}


def _resident(root: Path, worker: Optional[int]) -> dict[str, int]:
    found = {}
    for name, pid in (("supervisor", os.getpid()), ("worker", worker)):
        said = _text(root / f"proc/{pid}/status") if pid else ""
        match = re.search(r"^VmRSS:\s+([0-9]{1,18}) kB", said, re.MULTILINE)
        if match:
            found[name] = int(match[1]) << 10
    return found


def _sorted(folder: Path, prefix: str) -> list[Path]:
    try:
        found = [at for at in folder.iterdir() if at.name.startswith(prefix)]
    except OSError:
        return []
    return sorted(found, key=lambda at: (len(at.name), at.name))[:_MOST]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:  # not there, not for us, or a sensor that is asleep
        return ""


def _word(path: Path) -> str:
    return "".join(sign for sign in _text(path).strip()[:60] if sign.isprintable())


def _whole(path: Path) -> Optional[int]:
    match = _NUMBER.match(_text(path))
    return int(match[1]) if match else None


class Board(NamedTuple):
    """What this machine is: a board of the catalogue, or something else."""

    name: Optional[str]  # as its device tree calls it
    type: Optional[str]  # of the catalogue


def identify(root: Path = ROOT) -> Board:
    tree = [root / "sys/firmware/devicetree/base", root / "proc/device-tree"]
    model = next((found for at in tree if (found := _word_of_tree(at / "model"))), None)
    entries = next((said for at in tree if (said := _text(at / "compatible"))), "").split("\0")
    board = boards.catalogue().identify(entries, model or "")
    return Board(model, None if board is None else board.id)


def _word_of_tree(path: Path) -> str:
    return "".join(sign for sign in _text(path).partition("\0")[0].strip()[:100] if sign.isprintable())


def predicted(bundle: Bundle, board: Board, warn: Callable[[str], None] = lambda _: None) -> Optional[dict[str, Any]]:
    """What ``rk3588 predict`` says of the model: on this board, else on the one that figures are known best of."""
    if bundle.dtype not in PREDICTED:
        return None
    kind = boards.catalogue().boards[board.type or REFERENCE]
    try:
        sizes = shape.load(bundle.path)
        context = min(MAX_CONTEXT, sizes.context or MAX_CONTEXT)
        found = predict.predict(sizes, bundle.dtype, Workload(context=context).on(kind), kind.soc)
    except RkError as error:
        warn(f"no prediction: {error}")
        return None
    return {
        "board": kind.name, "is_this_board": board.type is not None, "decode_tok_s": _interval(found.decode_tok_s),
        "prefill_tok_s": _interval(found.prefill_tok_s), "memory_bytes": found.memory.total,
    }  # fmt: skip


def params(bundle: Bundle) -> Optional[int]:
    """Of the model; None where its shape is not known here."""
    try:
        return shape.load(bundle.path).total_params
    except RkError:
        return None


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
