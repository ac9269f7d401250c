"""What a model may become for a board, and how fast that is predicted to be."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from rk3588 import predict, quant
from rk3588.boards import BoardType
from rk3588.predict import Estimate, Memory, Prediction, Workload
from rk3588.shape import Shape
from rkconvert.artifact.layout import toolkit_obstacle
from rkconvert.plan import plan_artifacts
from rkconvert.request import Request
from rkconvert.rotation.options import HADAMARD, USUAL
from rkconvert.rotation.rotate import obstacle as rotation_obstacle
from rkconvert.sources.base import Source

_RATES = (0.25, 0.5)  # of hybrids


@dataclass(frozen=True)
class Variant:
    """One way to convert a model, by the names of ``rkconvert build``'s options."""

    dtype: str
    hybrid_rate: float = 0.0
    rotate: str | None = None
    smooth: bool = False

    @property
    def options(self) -> str:
        """As they are typed."""
        rate = f" --hybrid-rate {self.hybrid_rate:g}" if self.hybrid_rate else ""
        changes = (" --rotate" if self.rotate else "") + (" --smooth" if self.smooth else "")
        return f"--dtype {self.dtype}{rate}{changes}"

    @property
    def name(self) -> str:
        rate = f" hybrid {self.hybrid_rate:g}" if self.hybrid_rate else ""
        return self.dtype + rate + (" rotated" if self.rotate else "") + (" smooth" if self.smooth else "")

    @property
    def request(self) -> Request:
        smooth = USUAL if self.smooth else None
        return Request(dtypes=(self.dtype,), hybrid_rate=self.hybrid_rate, rotate=self.rotate, smooth=smooth)

    def facts(self) -> dict[str, Any]:
        return asdict(self)


# A hybrid of plain w8a8 has groups of 128 in the share of its layers that gains most by them.
_MIXES = (*map(Variant, predict.PREDICTED), *(Variant("w8a8", rate) for rate in _RATES))
_ROTATED = tuple(variant for mix in _MIXES for variant in (mix, replace(mix, rotate=HADAMARD)))
# Smoothed, plain w8a8 alone: it is calibrated, which takes longer than the rest.
_SMOOTH = Variant("w8a8", smooth=True)
VARIANTS = (*_ROTATED[:2], replace(_SMOOTH, rotate=HADAMARD), *_ROTATED[2:])


def possible(source: Source) -> tuple[tuple[Variant, ...], list[str]]:
    """The variants of this model, and why others are missing."""
    reason = rotation_obstacle(source.config)
    if reason is None:
        return VARIANTS, []
    return (_MIXES[0], _SMOOTH, *_MIXES[1:]), [f"Not rotated: {reason}."]


def obstacle(variant: Variant, source: Source) -> str | None:
    """Why rkllm-toolkit could not build this for a board; None: nothing known speaks against it."""
    schemes = [quant.scheme(variant.dtype)]
    (artifact,) = plan_artifacts(source, schemes, for_sim=True, hybrid_rate=variant.hybrid_rate)
    whole = quant.mixed(artifact.scheme)[1] if variant.hybrid_rate else artifact.scheme
    return toolkit_obstacle(replace(artifact, scheme=whole, grouped=None))


def predicted(variant: Variant, sizes: Shape, work: Workload, board: BoardType) -> Prediction:
    """On ``board``. A hybrid lies between the two that it is made of, and its interval holds both of theirs."""
    plain, grouped = (
        predict.predict(sizes, scheme.name, work.on(board), board.soc)
        for scheme in quant.mixed(quant.scheme(variant.dtype))
    )
    if not variant.hybrid_rate:
        return grouped if quant.scheme(variant.dtype).group_size else plain
    share = variant.hybrid_rate
    note = "hybrids: nobody published a speed of one; it lies between those of the two that it is mixed of."
    return Prediction(
        dtype=variant.dtype,
        decode_tok_s=_mixed_speed(plain.decode_tok_s, grouped.decode_tok_s, share),
        prefill_tok_s=_mixed_speed(plain.prefill_tok_s, grouped.prefill_tok_s, share),
        ttft_ms=_mixed_time(plain.ttft_ms, grouped.ttft_ms, share),
        memory=_mixed_memory(plain.memory, grouped.memory, share),
        notes=tuple(dict.fromkeys((*plain.notes, *grouped.notes, note))),
    )


def _mixed_time(plain: Estimate, grouped: Estimate, share: float) -> Estimate:
    value = plain.value + share * (grouped.value - plain.value)
    return Estimate(value, min(plain.low, grouped.low), max(plain.high, grouped.high))


def _mixed_speed(plain: Estimate, grouped: Estimate, share: float) -> Estimate:
    """Times add up, speeds do not."""
    first, second = (Estimate(1 / e.value, 1 / e.high, 1 / e.low) for e in (plain, grouped))
    time = _mixed_time(first, second, share)
    return Estimate(1 / time.value, 1 / time.high, 1 / time.low)


def _mixed_memory(plain: Memory, grouped: Memory, share: float) -> Memory:
    return replace(plain, weights=round(plain.weights + share * (grouped.weights - plain.weights)))
