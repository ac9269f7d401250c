"""The files by which a board is known, as the vendor's kernel shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rk3588.boards import BoardType

_NPU_HZ = (300_000_000, 400_000_000, 500_000_000, 600_000_000, 700_000_000, 800_000_000, 900_000_000, 1_000_000_000)
_DMC_HZ = (528_000_000, 1_068_000_000, 1_560_000_000, 2_112_000_000)
_CPU_KHZ = {0: 1_800_000, 4: 2_352_000, 6: 2_352_000}  # first CPU of each cluster


def firmware(folder: Path, board: BoardType) -> None:
    """``/sys/firmware``."""
    base = folder / "devicetree" / "base"
    base.mkdir(parents=True, exist_ok=True)
    first = board.compatible[-1] if board.compatible else "rockchip,rk3588-evb"
    (base / "compatible").write_bytes(f"{first}\0rockchip,rk3588\0".encode())
    (base / "model").write_bytes(f"{board.models[0] if board.models else board.name}\0".encode())


def debugfs(folder: Path) -> None:
    """``/sys/kernel/debug``."""
    rknpu = folder / "rknpu"
    rknpu.mkdir(parents=True, exist_ok=True)
    (rknpu / "version").write_text("RKNPU driver: v0.9.8\n")
    (rknpu / "load").write_text("NPU load:  Core0:  0%, Core1:  0%, Core2:  0%,\n")


def write_all(root: Path, board: BoardType) -> None:
    """Everything a fact looks at below /sys and /dev, for a board without root."""
    firmware(root / "sys" / "firmware", board)
    debugfs(root / "sys" / "kernel" / "debug")
    for name, steps in (("fdab0000.npu", _NPU_HZ), ("dmc", _DMC_HZ)):
        listed = " ".join(map(str, steps))
        values = {"governor": "simple_ondemand", "cur_freq": steps[0], "available_frequencies": listed}
        _files(root / "sys" / "class" / "devfreq" / name, values)
    for cpu, highest in _CPU_KHZ.items():
        values = {"scaling_governor": "ondemand", "scaling_cur_freq": 408_000, "cpuinfo_max_freq": highest}
        _files(root / "sys" / "devices" / "system" / "cpu" / "cpufreq" / f"policy{cpu}", values)
    for cpu in range(8):
        _files(root / "sys" / "devices" / "system" / "cpu" / f"cpu{cpu}", {"cpu_capacity": 414 if cpu < 4 else 1024})
    _files(root / "sys" / "class" / "thermal" / "thermal_zone0", {"type": "soc-thermal", "temp": 41_000})
    _files(root / "dev", {"rknpu": ""})
    _files(root / "dev" / "dma_heap", {"system": ""})


def _files(folder: Path, values: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")
