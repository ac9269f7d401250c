"""Mistakes that rkllm-toolkit tells after minutes or hours, told before it starts.

What is certain is refused. What is only likely (``Likely``) is refused as well, unless --force was given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rk3588 import families
from rk3588.errors import CheckpointError, RkError, ToolkitError, UsageError, WrongModel
from rk3588.gguf import JOIN
from rk3588.quant import SCHEMES, Scheme
from rkconvert import memory
from rkconvert.sources.base import Checkpoint, SourceTensor
from rkconvert.sources.gptq import Gptq

from . import releases
from .options import DEVICES, BoardOptions
from .releases import Release

BOARD_DTYPES = tuple(s.name for s in SCHEMES.values() if s.quantised)
RK3576_DTYPES = ("w4a16", "w4a16_g32", "w4a16_g64", "w4a16_g128")
CORES = (1, 2, 3)
LEVELS = (0, 1)
GGUF_TYPES = ("F16", "Q4_0")
LEAST, USUAL = 2, 4  # times the model's size that a conversion takes of RAM
GET_ANOTHER = "install a newer one beside it (rkconvert toolkit install), or say which with --toolkit"
_NVIDIA = Path("/proc/driver/nvidia/version")
_GB = 1e9


@dataclass(frozen=True)
class Likely:
    """A reason to expect failure, from incomplete knowledge; ``error`` is raised unless it is overridden."""

    error: RkError


def check_options(
    dtypes: Iterable[str], hybrid_rate: float, board: BoardOptions, release: Release | None = None
) -> list[Likely]:
    """What the call alone says, before the model is looked at. UsageError for what no RK3588 can be built with.

    ``release``: of the toolkit that is to do it; None where none is to.
    """
    for dtype in dtypes:
        if dtype not in BOARD_DTYPES:
            whose = "is the RK3576's" if dtype in RK3576_DTYPES else "cannot be built for a board"
            raise UsageError(f"--dtype {dtype} {whose}: an RK3588 runs {', '.join(BOARD_DTYPES)}")
    if board.npu_cores not in CORES:
        raise UsageError(f"--npu-cores {board.npu_cores}: an RK3588 has 3, give 1, 2 or 3")
    check_hybrid(hybrid_rate)
    if board.optimization_level not in LEVELS:
        raise UsageError(f"--optimization-level {board.optimization_level}: rkllm-toolkit has 0 and 1")
    if board.device not in DEVICES:
        raise UsageError(f"--device {board.device}: rkllm-toolkit has {' and '.join(DEVICES)}")
    likely = _check_release(board, release) if release else []
    if board.extra_qparams is not None:
        if not board.extra_qparams.is_file():
            raise UsageError(f"--extra-qparams {board.extra_qparams} is not a file")
        likely.append(Likely(UsageError("--extra-qparams is what gdq computes, and an RK3588's dtypes do not use gdq")))
    if board.device == "cuda" and not _NVIDIA.exists():
        likely.append(Likely(UsageError("--device cuda: this machine has no NVIDIA driver; use --device cpu")))
    return likely


def _check_release(board: BoardOptions, release: Release) -> list[Likely]:
    """Arguments that this release takes otherwise than others, or not at all."""
    named = f"rkllm-toolkit {release.name}"
    algorithm = board.algorithm
    if algorithm == "gdq":
        raise UsageError("--algorithm gdq is for 4-bit weights, which an RK3588 does not run: leave it at normal")
    if not release.takes_algorithm(algorithm):
        residual = " and normal_rN, with N up to 64," if release.takes_algorithm("normal_r8") else ""
        has = " and ".join(release.algorithms)
        raise UsageError(f"--algorithm {algorithm}: {named} has {has}{residual}{_newer(algorithm)}")
    likely = []
    if algorithm.startswith("grq"):
        told = f"--algorithm {algorithm}: Rockchip's examples advise grq for 4-bit weights, and normal for an RK3588's"
        likely.append(Likely(UsageError(told)))
    later = {
        "--max-context": board.max_context is not None and not release.takes_max_context,
        "--load-dtype": board.load_dtype is not None and not release.takes_load_options,
        "--custom-config": board.custom_config is not None and not release.takes_load_options,
    }
    for option, lacks in later.items():
        if lacks:
            raise UsageError(f"{option} is rkllm-toolkit's from 1.2.0 on, and this is {release.name}: {GET_ANOTHER}")
    context = board.max_context
    most, step = releases.MOST_CONTEXT, releases.CONTEXT_STEP
    if context is not None and not (0 < context <= most and context % step == 0):
        raise UsageError(f"--max-context {context}: it is a multiple of {step}, {most} at the most")
    if board.load_dtype is not None and board.load_dtype not in releases.LOAD_DTYPES:
        raise UsageError(f"--load-dtype {board.load_dtype}: {named} has {', '.join(releases.LOAD_DTYPES)}")
    if board.custom_config is not None and not board.custom_config.is_file():
        raise UsageError(f"--custom-config {board.custom_config} is not a file")
    return likely


def _newer(algorithm: str) -> str:
    """Where another release has it, which."""
    able = [name for name in (*releases.WHEELS, *releases.UNPUBLISHED) if Release(name).takes_algorithm(algorithm)]
    return f"; {algorithm} is of {able[0]} to {able[-1]}: {GET_ANOTHER}" if able else ""


def check_hybrid(rate: float) -> None:
    if not (math.isfinite(rate) and 0 <= rate < 1):
        raise UsageError(f"--hybrid-rate {rate:g}: it is a share of the layers, from 0 up to but not including 1")


def check_model(
    source: Checkpoint, schemes: Sequence[Scheme], release: Release
) -> tuple[list[Likely], list[str]]:
    """What the model's headers say: (reasons to expect failure, notes). CheckpointError for what cannot work."""
    likely = _architecture(source, release.name)
    if source.kind == "gguf":
        likely += [*_gguf_parts(source), *_gguf_types(source)]
    elif not any(file.name in ("tokenizer.json", "tokenizer.model") for file in source.extras):
        raise CheckpointError(f"{source.path} has no tokenizer.json and no tokenizer.model: download the model again")
    if source.gptq:
        return likely, _gptq(source, source.gptq, schemes, release)
    notes = []
    for scheme in schemes:
        misfit = next((t for t in source.linear if scheme.short_group(t.columns)), None)
        if misfit is not None:
            likely.append(Likely(CheckpointError(_misfit(source, scheme, misfit))))
        outputs = sorted({t.rows for t in source.linear if scheme.group_size and t.rows % scheme.group_size})
        if outputs:
            notes.append(
                f"the manual asks that a group of {scheme.group_size} divide a layer's outputs, which it does not for "
                f"N = {', '.join(map(str, outputs))}; published models do not keep to that"
            )
    return likely, notes


def _architecture(source: Checkpoint, release: str) -> list[Likely]:
    """Which families which rkllm-toolkit takes is known from Rockchip's lists alone, so --force may try."""
    gguf = source.kind == "gguf"
    name = source.architecture
    family = families.of_gguf(name) if gguf else families.of_class(name)
    told = f"{source.path if gguf else source.path / 'config.json'}: {name}"
    if family is None or not family.toolkit or name in family.text_of:
        known = families.taken(release, gguf=gguf)
        what = f"is not among the architectures of rkllm-toolkit {release} ({', '.join(known)})"
        return [Likely(CheckpointError(f"{told} {what}"))]
    needs, what = family.toolkit, family.title
    if source.long_rope and families.version(needs) < families.version(families.LONGROPE_TOOLKIT):
        needs, what = families.LONGROPE_TOOLKIT, "its LongRoPE"
    if families.version(release) >= families.version(needs):
        return []
    older = f"rkllm-toolkit takes {what} from {needs} on, and this is {release}"
    return [Likely(CheckpointError(f"{told}: {older}: {GET_ANOTHER}"))]


def _gptq(source: Checkpoint, found: Gptq, schemes: Sequence[Scheme], release: Release) -> list[str]:
    """Notes of a checkpoint that GPTQ has quantised; CheckpointError or UsageError for what cannot be built of it."""
    told = f"{source.path / 'config.json'}: the model is quantised already (gptq)"
    if not release.takes_gptq:
        raise CheckpointError(
            f"{told}, which rkllm-toolkit takes from 1.2.0 on, and this is {release.name}: convert the original, or "
            f"{GET_ANOTHER}"
        )
    if wrong := found.obstacle():
        raise CheckpointError(f"{told}, and {wrong}: convert the original instead")
    dtype = f"w8a8_g{found.group}"
    other = next((scheme.name for scheme in schemes if scheme.name != dtype), None)
    if other:
        raise UsageError(f"--dtype {other}: {source.path} has weights in groups of {found.group}: give --dtype {dtype}")
    return [f"its weights are taken as GPTQ quantised them, with {found.bits} bits in groups of {found.group}"]


def _gguf_parts(source: Checkpoint) -> list[Likely]:
    if len(source.files) < 2:
        return []
    told = f"{source.path} is a model in {len(source.files)} parts, and rkllm-toolkit is given one file: {JOIN}"
    return [Likely(WrongModel(told))]


def _gguf_types(source: Checkpoint) -> list[Likely]:
    other = [t for t in source.tensors.values() if len(t.shape) == 2 and t.kind not in GGUF_TYPES]
    if not other:
        return []
    first = next((t for t in other if t in source.linear and "output" not in t.name), None)
    told = "rkllm-toolkit takes GGUF files of F16 and Q4_0 only: convert from the Hugging Face model"
    if first is not None:
        raise WrongModel(f"{source.path}: tensor {first.name} has type {first.kind}, and {told}")
    # llama-quantize keeps these two at a higher precision in files that it calls Q4_0.
    return [Likely(WrongModel(f"{source.path}: tensor {other[0].name} has type {other[0].kind}, and {told}"))]


def _misfit(source: Checkpoint, scheme: Scheme, tensor: SourceTensor) -> str:
    sides = {t.columns for t in source.linear}
    fits = [name for name in BOARD_DTYPES if not any(SCHEMES[name].short_group(k) for k in sides)]
    return (
        f"{tensor.file}: layer {tensor.name} has {tensor.columns} inputs, which groups of {scheme.group_size} do not "
        f"divide, as rkllm-toolkit wants them to: take --dtype {' or '.join(fits)}"
    )


def check_loras(source: Checkpoint, names: Sequence[str], algorithm: str) -> None:
    if names and releases.is_residual(algorithm):
        raise UsageError(
            f"--algorithm {algorithm} makes a LoRA of what quantising lost, and rkllm-toolkit writes one at a time: "
            f"leave --lora {names[0]} or the algorithm out"
        )
    if names and source.kind == "gguf":
        raise WrongModel(
            f"{source.path}: rkllm-toolkit takes a LoRA ({names[0]}) with a Hugging Face model only, not with GGUF"
        )


def check_memory(source: Checkpoint) -> tuple[list[Likely], list[str]]:
    """A conversion that the kernel ends after an hour is told here."""
    has = memory.machine()
    size = source.nbytes
    told = (
        f"converting {size / _GB:.1f} GB takes rkllm-toolkit {LEAST * size / _GB:.1f} to {USUAL * size / _GB:.1f} GB "
        f"of memory, and this machine has {has.free / _GB:.1f} GB of RAM free and {has.swap / _GB:.1f} GB of swap"
    )
    if has.most < LEAST * size:
        return [Likely(ToolkitError(f"{told}: end other programs, add swap, or convert on a larger machine"))], []
    return [], [told] if has.most < USUAL * size else []


def settle(likely: Sequence[Likely], force: bool) -> list[str]:
    """Raise the first reason; with ``force``, all of them are notes."""
    if likely and not force:
        error = likely[0].error
        raise type(error)(f"{error}; --force tries it all the same")
    return [f"forced, though {reason.error}" for reason in likely]
