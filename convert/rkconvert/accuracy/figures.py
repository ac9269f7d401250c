"""The figures of ``--figures DIR``, each as PNG and SVG: KL of each bundle, signal-to-noise of each layer, and KL
against the decode speed that is predicted for a board."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rk3588.bundle import Bundle
from rk3588.errors import TargetError, UsageError
from rk3588.predict import Estimate
from rkconvert.cards.card import Variant

from .names import short_names
from .result import Accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")
Row = tuple[Bundle, Accuracy]
Draw = Callable[["Axes", Sequence[Row], list[str]], None]


def check(folder: Path) -> None:
    """Before any work: that the folder can be written to, and that matplotlib is there."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--figures {folder} is no folder: give one, which is made where there is none")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("--figures needs matplotlib: pip install 'rk3588[plot]'") from error


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """What was drawn. A figure for which nothing was measured is left out."""
    names = short_names(rows)
    drawn: list[tuple[str, Draw]] = [("kl", _divergences)]
    if any(result.layers for _, result in rows):
        drawn.append(("layers", _layers))
    if len(_speeds(rows, names)) > 1:
        drawn.append(("kl-speed", _against_speed))
    return [path for name, into in drawn for path in _save(folder, name, into, rows, names)]


def _save(
    folder: Path, name: str, into: Draw, rows: Sequence[Row], names: list[str]
) -> list[Path]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    into(figure.add_subplot(), rows, names)
    drawn = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in FORMATS:
            path, part = folder / f"{name}.{suffix}", folder / f".{name}.{suffix}.part"
            try:
                figure.savefig(part, format=suffix, dpi=150)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            drawn.append(path)
    except OSError as error:
        raise TargetError(f"cannot write figures into {folder}: {error.strerror}") from error
    return drawn


def _title(rows: Sequence[Row], what: str) -> str:
    one = rows[0][1]
    return f"{rows[0][0].name}: {what}\n{one.scored:,} tokens, against {one.reference}"


def _divergences(axes: Axes, rows: Sequence[Row], names: list[str]) -> None:
    """Means with their intervals, and where the median and 99 % of the tokens lie."""
    shown = [(name, result) for name, (_, result) in zip(names, rows) if result.kl > 0]
    places = list(range(len(shown)))[::-1]
    means = [result.kl for _, result in shown]
    axes.errorbar(means, places, xerr=_errors([r for _, r in shown]), fmt="o", capsize=4, label="mean, 95 % interval")
    for marker, key, label in (("|", "kl_median", "median"), ("D", "kl_p99", "99 % of tokens below")):
        values = [getattr(result, key) for _, result in shown]
        axes.scatter(values, places, marker=marker, color="0.4", s=80 if marker == "|" else 24, label=label, zorder=3)
    axes.set_yticks(places, [name for name, _ in shown])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    if shown:
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
    axes.grid(color="0.9")
    axes.set_xlabel("KL divergence from the reference, nats a token")
    axes.set_title(_title(rows, "divergence of the next token"))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)


def _plain_numbers(axis: Any) -> None:
    """0.02 and 0.05 on a logarithmic axis, not powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _errors(results: Sequence[Accuracy]) -> Any:
    """What stands below and above each mean."""
    bounds = [result.intervals.get("kl") or (result.kl, result.kl) for result in results]
    # On a logarithmic axis a bar that reaches zero would reach for ever.
    low = [min(r.kl - b[0], 0.95 * r.kl) for r, b in zip(results, bounds)]
    return [low, [b[1] - r.kl for r, b in zip(results, bounds)]]


def _layers(axes: Axes, rows: Sequence[Row], names: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for index, (name, (_, result)) in enumerate(zip(names, rows)):
        if result.layers:
            values = result.layers["snr_db"]
            axes.plot(range(len(values)), values, marker="osD^v"[index % 5], markersize=4, linewidth=1, label=name)
    axes.grid(color="0.9")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
    axes.set_ylabel("signal-to-noise of what the layer adds, dB")
    axes.set_title(f"{rows[0][0].name}: each layer by itself, on the reference's input (higher is better)")
    axes.legend()


def _speeds(rows: Sequence[Row], names: list[str]) -> list[tuple[str, Accuracy, Estimate]]:
    """Tokens per second on an RK3588, of those of which there is a prediction."""
    found = []
    for name, (one, result) in zip(names, rows):
        speeds = [prediction.decode_tok_s for prediction in Variant.of(one).predictions()]
        if speeds and result.kl > 0:  # of a hybrid there are two, between which it lies
            value = sum(speed.value for speed in speeds) / len(speeds)
            bounds = min(speed.low for speed in speeds), max(speed.high for speed in speeds)
            found.append((name, result, Estimate(value, *bounds)))
    return found


def _against_speed(axes: Axes, rows: Sequence[Row], names: list[str]) -> None:
    for index, (name, result, speed) in enumerate(_speeds(rows, names)):
        across = [[speed.value - speed.low], [speed.high - speed.value]]
        marker = "osD^v"[index % 5]
        axes.errorbar(speed.value, result.kl, xerr=across, yerr=_errors([result]), fmt=marker, capsize=4, label=name)
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.set_xlim(left=0)
    axes.grid(color="0.9")
    axes.set_xlabel("decode on an RK3588, predicted, tokens/s (bars: 90 % interval)")
    axes.set_ylabel("KL divergence, nats a token (bars: 95 % interval)")
    axes.set_title(_title(rows, "accuracy against speed (best: below, right)"))
    axes.legend()
