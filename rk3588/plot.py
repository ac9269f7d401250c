"""The figure of ``rk3588 predict --plot``: decode speed against memory for each dtype, boards' RAM as lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .boards import BoardType
from .errors import TargetError, UsageError
from .predict import Prediction
from .rkllm import SYSTEM_BYTES
from .shape import Shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
GIB = 1 << 30


def check(file: Path) -> None:
    """Before any work: that the name is one we draw, and that matplotlib is there."""
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {file}: the name has to end in .png or .svg")
    if not file.parent.is_dir():
        raise TargetError(f"--plot {file}: there is no folder {file.parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'rk3588[plot]'") from error


def draw(file: Path, sizes: Shape, found: list[tuple[BoardType, Prediction]]) -> None:
    """Write the figure; a dtype whose prediction is the same on several boards is one point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = sorted({(p.dtype, p.decode_tok_s): p for _, p in found}.values(), key=_need)
    _ram_lines(axes, [gb for board, _ in found for gb in board.ram_gb], points)
    width = axes.get_xlim()[1] - axes.get_xlim()[0]
    crowded = max(map(_need, points)) - min(map(_need, points)) < 0.02 * width * (len(points) - 1)
    for i, p in enumerate(points):
        speed = p.decode_tok_s
        bar = [[speed.value - speed.low], [speed.high - speed.value]]
        # Bars that would lie on each other stand side by side.
        aside = ScaledTranslation((i - (len(points) - 1) / 2) * 9 / 72 * crowded, 0, figure.dpi_scale_trans)
        place = axes.transData + aside
        axes.errorbar(_need(p), speed.value, yerr=bar, fmt="o", capsize=4, label=p.dtype, transform=place)
    axes.set_ylim(0, 1.05 * max(p.decode_tok_s.high for p in points))
    axes.set_xlabel(f"RAM needed, GiB (model, KV cache and {SYSTEM_BYTES / GIB:g} for the system)")
    axes.set_ylabel("decode, tokens/s (bars: 90 % interval)")
    axes.set_title(f"{sizes.name} on an RK3588, predicted")
    axes.legend()
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise TargetError(f"cannot write {file}: {error.strerror}") from error


def _need(prediction: Prediction) -> float:
    """GiB of RAM."""
    return (prediction.memory.total + SYSTEM_BYTES) / GIB


def _ram_lines(axes: Axes, sizes: list[int], points: list[Prediction]) -> None:
    """A line for each RAM size of the boards, from the last that holds no point to the first that holds all."""
    needed = [_need(p) for p in points]
    start = max((gb for gb in sizes if gb <= min(needed)), default=0)
    end = min((gb for gb in sizes if gb >= max(needed)), default=max(needed))
    for gb in sorted({gb for gb in sizes if start <= gb <= end}):
        axes.axvline(gb, color="0.6", linestyle="--", linewidth=1, zorder=0)
        axes.annotate(
            f"{gb} GB board", (gb, 1), xycoords=("data", "axes fraction"), xytext=(-3, -4), textcoords="offset points",
            rotation=90, ha="right", va="top", color="0.4",
        )  # fmt: skip
    margin = (end - start) * 0.06
    axes.set_xlim(start - margin if start else 0, end + margin)
