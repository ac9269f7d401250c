"""``rk3588 predict``: how fast a model is on a board, how big, and whether it fits; from its shape, nothing is run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rk3588 import bundle, gguf, predict, rkllm, shape
from rk3588.boards import BoardType
from rk3588.commands import inventories
from rk3588.commands.converting import converter
from rk3588.errors import UsageError, printable
from rk3588.predict import Estimate, Prediction, Workload
from rk3588.shape import Shape

GIB = 1 << 30


@click.command("predict")
@click.argument("model", type=click.Path())
@click.option("--board", "names", multiple=True, metavar="NAME", help="Board type or host, repeatable [all types].")
@click.option("--dtype", "dtypes", multiple=True, help="Repeatable [the bundle's, or all that a board runs].")
@click.option("--ram", type=click.IntRange(1), metavar="GB", help="RAM of your board [all that it is sold with].")
@click.option("--prompt", default=128, show_default=True, metavar="N", help="Tokens of the prompt.")
@click.option("--context", default=None, type=int, metavar="N", help="Tokens that memory is kept for [4096 or less].")
@click.option("--ddr", "ddr_mhz", type=int, metavar="MHZ", help="The memory's clock, where it is not the highest.")
@click.option("--bandwidth", type=float, metavar="GB/S", help="What decoding gets of its memory, measured.")
@click.option("--cores", default=3, show_default=True, metavar="N", help="NPU cores.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one for each board and dtype.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw speed against memory (.png, .svg).")
@click.option("--hosts", "file", type=click.Path(path_type=Path), help="Inventory, instead of ./hosts.yaml.")
def command(
    model: str,
    names: tuple[str, ...],
    dtypes: tuple[str, ...],
    ram: int | None,
    as_json: bool,
    plot: Path | None,
    file: Path | None,
    **workload: Any,
) -> None:
    """How fast, how big, does it fit: from the model's shape alone, with 90 % intervals.

    MODEL is a bundle or whatever rkconvert takes: a Hugging Face folder (its config.json is enough), a GGUF file, or
    one on the Hugging Face hub, USER/REPO or USER/REPO:FILE.gguf.

    Fitted to Rockchip's published figures; every line that goes beyond them says so. Board clocks at their maximum
    are assumed unless --ddr or --bandwidth says otherwise, or hosts.yaml has the board's bandwidth_gb_s. Some boards'
    memory is slower at any clock (half the bus): `rk3588 doctor HOST` measures it.
    """
    if plot is not None:
        from rk3588 import plot as drawing

        drawing.check(plot)
    known = inventories.load(file)
    chosen = [known.board(name) for name in dict.fromkeys(names)] or list(known.boards.values())
    if ram is not None:
        chosen = _with_ram(chosen, ram, bool(names))
    sizes = _sizes(model)
    work = _workload(sizes, **workload)
    found = [(b, predict.predict(sizes, d, work.on(b), b.soc)) for b in chosen for d in _dtypes(Path(model), dtypes)]
    if plot is not None:
        drawing.draw(plot, sizes, found)
    if as_json:
        click.echo(json.dumps([_object(b, work, p) for b, p in found], indent=2, ensure_ascii=False))
    else:
        click.echo(printable(_text(sizes, work, found)))
    if plot is not None:
        click.echo(f"drew {plot}", err=True)


def _sizes(model: str) -> Shape:
    """What the core reads itself; all else is for rkconvert, which a board does not have."""
    path = Path(model)
    ours = any((path / name).exists() for name in (bundle.MANIFEST, "config.json"))
    if ours or path.suffix.lower() == ".json" or (path.is_dir() and not any(path.glob("*.gguf"))):
        return shape.load(path)
    try:
        reader = converter(
            "rkconvert.shapes",
            f"{model} is no bundle, no folder with config.json and no GGUF file, and all else is read",
        )
    except UsageError:
        if path.is_file():
            return gguf.shape_of(path)
        raise
    found: Shape = reader.load(model)
    return found


def _with_ram(chosen: list[BoardType], ram: int, named: bool) -> list[BoardType]:
    """Boards with so much RAM; UsageError for one that was asked for and is not sold so."""
    if named:
        return [board.with_ram(ram) for board in chosen]
    found = [replace(board, ram_gb=(ram,)) for board in chosen if ram in board.ram_gb]
    if not found:
        known = sorted({gb for board in chosen for gb in board.ram_gb})
        raise UsageError(f"--ram {ram}: no board is known that has it; they have {', '.join(map(str, known))} GB")
    return found


def _workload(
    sizes: Shape, prompt: int, context: int | None, ddr_mhz: int | None, bandwidth: float | None, cores: int
) -> Workload:
    usual = min(rkllm.MAX_CONTEXT, sizes.context or rkllm.MAX_CONTEXT)
    return Workload(
        prompt=prompt,
        context=usual if context is None else context,
        cores=cores,
        ddr_mhz=ddr_mhz,
        bandwidth_gb_s=bandwidth,
    )


def _dtypes(model: Path, given: tuple[str, ...]) -> list[str]:
    """Those asked for, else the bundle's own, else all."""
    if given:
        return list(dict.fromkeys(given))
    if not (model / bundle.MANIFEST).is_file():
        return list(predict.PREDICTED)
    dtype = bundle.read(model).dtype
    if dtype not in predict.PREDICTED:
        raise UsageError(f"{model} is {dtype}, for which no speed on an RK3588 has been published: give a --dtype")
    return [dtype]


def _object(board: BoardType, work: Workload, found: Prediction) -> dict[str, Any]:
    parts = found.memory
    return {
        "board": board.id,
        "dtype": found.dtype,
        "decode_tok_s": _estimate(found.decode_tok_s),
        "prefill_tok_s": _estimate(found.prefill_tok_s),
        "ttft_ms": _estimate(found.ttft_ms),
        "memory_bytes": parts.total,
        "memory": {"weights": parts.weights, "embedding": parts.embedding, "kv": parts.kv, "runtime": parts.runtime},
        "fits": {str(gb): parts.fits(gb) for gb in board.ram_gb},
        "bandwidth_gb_s": work.on(board).bandwidth_gb_s,  # null: that of the published figures, or of --ddr
        "notes": list(found.notes),
    }


def _estimate(of: Estimate) -> dict[str, float]:
    return {"value": round(of.value, 2), "low": round(of.low, 2), "high": round(of.high, 2)}


def _text(sizes: Shape, work: Workload, found: list[tuple[BoardType, Prediction]]) -> str:
    memory = f", memory {work.bandwidth_gb_s:g} GB/s" if work.bandwidth_gb_s else ""
    lines = [
        f"{sizes.name}: {sizes.total_params / 1e6:,.1f} M parameters; prompt {work.prompt}, "
        f"context {work.context} tokens{memory}",
        "",
    ]
    for names, predictions in _alike(work, found):
        lines += [*names, _speeds(predictions), "", _memories(predictions), ""]
    lines += [
        "RAM is what the board needs: the model and "
        f"{rkllm.SYSTEM_BYTES / GIB:g} GB for its system. In brackets: 90 % intervals.",
        *_notes([p for _, p in found]),
    ]
    return "\n".join(lines)


def _alike(work: Workload, found: list[tuple[BoardType, Prediction]]) -> list[tuple[list[str], list[Prediction]]]:
    """Boards with the same predictions and RAM stand together: all RK3588 boards are alike until somebody measures."""
    by_board: dict[object, tuple[BoardType, list[Prediction]]] = {}
    for board, prediction in found:
        key = board.name, board.ram_gb, board.bandwidth_gb_s
        by_board.setdefault(key, (board, []))[1].append(prediction)
    groups: list[tuple[list[BoardType], list[Prediction]]] = []
    for board, predictions in by_board.values():
        for members, shared in groups:
            if shared == predictions:
                members.append(board)
                break
        else:
            groups.append(([board], predictions))
    return [([_fits(board, work, shared) for board in members], shared) for members, shared in groups]


def _fits(board: BoardType, work: Workload, predictions: list[Prediction]) -> str:
    texts = []
    for prediction in predictions:
        enough = [gb for gb in board.ram_gb if prediction.memory.fits(gb)]
        where = f"from {enough[0]} GB" if len(board.ram_gb) > 1 and enough else f"{board.ram_gb[0]} GB"
        texts.append(f"{prediction.dtype} {where if enough else 'does not fit'}")
    alike = {text.partition(" ")[2] for text in texts}
    said = f"fits {alike.pop()}" if len(alike) == 1 else ", ".join(texts)
    own = work.on(board) != work
    memory = f", memory {board.bandwidth_gb_s:g} GB/s" if own else ""
    return f"{board.name:24}{said.replace('fits does', 'does')}{memory}"


def _speeds(predictions: list[Prediction]) -> str:
    rows = [f"\n{'dtype':11}{'decode tok/s':>22}{'prefill tok/s':>22}{'first token, ms':>26}"]
    for p in predictions:
        rows.append(f"{p.dtype:11}{_bounds(p.decode_tok_s):>22}{_bounds(p.prefill_tok_s):>22}{_bounds(p.ttft_ms):>26}")
    return "\n".join(rows)


def _bounds(of: Estimate) -> str:
    places = 0 if of.value >= 100 else 1 if of.value >= 10 else 2
    return f"  {of.value:,.{places}f} ({of.low:,.{places}f}–{of.high:,.{places}f})"


def _memories(predictions: list[Prediction]) -> str:
    rows = [f"{'memory, MB':11}{'weights':>10}{'embedding':>11}{'KV':>8}{'runtime':>9}{'total':>9}{'RAM':>9}"]
    for p in predictions:
        m = p.memory
        cells = [f"{x / 1e6:,.0f}" for x in (m.weights, m.embedding, m.kv, m.runtime, m.total)]
        need = f"{(m.total + rkllm.SYSTEM_BYTES) / GIB:.1f} GB"
        rows.append(f"{p.dtype:11}{cells[0]:>10}{cells[1]:>11}{cells[2]:>8}{cells[3]:>9}{cells[4]:>9}{need:>9}")
    return "\n".join(rows)


def _notes(predictions: list[Prediction]) -> list[str]:
    return [f"- {note}" for note in dict.fromkeys(note for p in predictions for note in p.notes)]
