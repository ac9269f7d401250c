"""Speed and memory of a model on an RK3588, from its shape alone: a formula fitted to Rockchip's published figures.

decode ms/token = (weights + lm_head + KV bytes) / bandwidth + time per layer + time per group of a grouped scheme
TTFT ms         = time per weight and prompt token + time per layer + time per group and prompt token
memory          = weights and lm_head + embedding + KV + runtime + scales of a grouped scheme

The coefficients come from ``data/coefficients.json``, which ``tests/bench/predict_fit.py`` computes from
``data/rk3588_published.csv``. All times in this module are milliseconds, all sizes bytes unless a name says otherwise.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from . import resources
from .errors import UsageError
from .quant import SCHEMES, Scheme
from .rkllm import CONTEXT_RESERVE, MAX_CONTEXT, NPU_WINDOW, SYSTEM_BYTES

if TYPE_CHECKING:
    from .boards import BoardType, Soc

GIGA = 1e9
PREDICTED = tuple(s.name for s in SCHEMES.values() if s.quantised)

# One core instead of three decodes at about 0.6 of the speed (one source). Bounds: proportional, and no loss at all.
CORE_FACTORS = {1: (0.6, 1 / 3, 1.0), 2: (0.8, 2 / 3, 1.0), 3: (1.0, 1.0, 1.0)}


class Sizes(Protocol):
    """What a prediction needs to know of a model; ``rk3588.shape.Shape`` knows it."""

    @property
    def layers(self) -> int: ...
    @property
    def linear_params(self) -> int: ...
    @property
    def lm_head_params(self) -> int: ...
    @property
    def kv_bytes_per_token(self) -> int: ...
    @property
    def attention_width(self) -> int: ...


@dataclass(frozen=True)
class Estimate:
    """A value and the bounds of its 90 % prediction interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Memory:
    """Bytes on the board, by part."""

    weights: int  # linear layers and lm_head with their scales
    embedding: int
    kv: int
    runtime: int

    @property
    def total(self) -> int:
        return self.weights + self.embedding + self.kv + self.runtime

    def fits(self, ram_gb: int) -> bool:
        """Whether a board with this RAM (GiB) holds it beside its system."""
        return self.total + SYSTEM_BYTES <= ram_gb << 30


@dataclass(frozen=True)
class Workload:
    """What is asked of the model, and the board's condition. Tokens, MHz, GB/s; None: at its highest clock."""

    prompt: int = 128
    answer: int = 128
    context: int = MAX_CONTEXT
    cores: int = 3
    ddr_mhz: int | None = None
    bandwidth_gb_s: float | None = None


    def on(self, board: BoardType) -> Workload:
        """The same where ``board`` has a memory of its own speed, and nothing else was said of it."""
        if self.ddr_mhz is not None or self.bandwidth_gb_s is not None:
            return self
        return replace(self, bandwidth_gb_s=board.bandwidth_gb_s)


@dataclass(frozen=True)
class Prediction:
    dtype: str
    decode_tok_s: Estimate
    prefill_tok_s: Estimate
    ttft_ms: Estimate
    memory: Memory
    notes: tuple[str, ...]  # what goes beyond the published figures, and what to mind


@dataclass(frozen=True)
class _Condition:
    """A board's speed over that of the published figures: likely, lowest and highest, of memory and cores."""

    bandwidth: float
    bandwidth_low: float
    cores: float
    cores_low: float
    cores_high: float


@functools.lru_cache(maxsize=1)
def coefficients() -> dict[str, Any]:
    """The fitted numbers; the script that writes them explains each."""
    loaded: dict[str, Any] = json.loads(resources.read("data/coefficients.json"))
    return loaded


def predict(sizes: Sizes, dtype: str, work: Workload, soc: Soc) -> Prediction:
    """Prediction for a model in ``dtype`` on ``soc``; UsageError for what no RK3588 runs or what cannot be."""
    spec = _scheme(dtype)
    _check(work, soc)
    at = _condition(work, soc)
    ttft = _first_token(sizes, spec, work, at)
    return Prediction(
        dtype=dtype,
        decode_tok_s=_decode(sizes, spec, work, at),
        prefill_tok_s=Estimate(*(work.prompt * 1e3 / ms for ms in (ttft.value, ttft.high, ttft.low))),
        ttft_ms=ttft,
        memory=memory(sizes, spec, work.context),
        notes=tuple(_notes(sizes, spec, work, soc)),
    )


def _decode(sizes: Sizes, spec: Scheme, work: Workload, at: _Condition) -> Estimate:
    """Tokens per second."""
    tokens = work.prompt + work.answer / 2
    low, high = _spread("decode", spec, sizes)
    likely = 1e3 / decode_ms(sizes, spec, tokens, at.bandwidth)
    slowest = 1e3 / decode_ms(sizes, spec, tokens, at.bandwidth_low)
    fastest = likely * at.cores_high * high
    if spec.group_size:  # groups make nothing faster
        fastest = min(fastest, _decode(sizes, SCHEMES["w8a8"], work, at).high)
    return Estimate(likely * at.cores, slowest * at.cores_low * low, fastest)


def _first_token(sizes: Sizes, spec: Scheme, work: Workload, at: _Condition) -> Estimate:
    """Milliseconds; they grow as speeds shrink, so the bounds change places."""
    low, high = _spread("prefill", spec, sizes)
    # A prompt takes at least one pass over all the weights; beyond that the memory's clock matters little.
    likely = max(prefill_ms(sizes, spec, work.prompt), decode_ms(sizes, spec, work.prompt, at.bandwidth))
    first = likely / at.cores_high / high
    if spec.group_size:
        first = max(first, _first_token(sizes, SCHEMES["w8a8"], work, at).low)
    last = (likely / min(at.bandwidth_low, 1.0) + _attention_ms(sizes, work.prompt)) / at.cores_low / low
    return Estimate(likely / at.cores, first, last)


def decode_ms(sizes: Sizes, spec: Scheme, kv_tokens: float, bandwidth_factor: float = 1.0) -> float:
    """Milliseconds for one token after ``kv_tokens`` others."""
    fit = coefficients()["decode"]
    moved = sizes.linear_params + sizes.lm_head_params + sizes.kv_bytes_per_token * kv_tokens
    base = moved / (fit["bandwidth_gb_s"] * bandwidth_factor * 1e6) + fit["layer_ms"] * sizes.layers
    return float(base + _group_ns("decode", spec) * 1e-6 * groups(sizes, spec))


def prefill_ms(sizes: Sizes, spec: Scheme, prompt: int) -> float:
    """Milliseconds from a prompt of ``prompt`` tokens to the first token of the answer."""
    fit = coefficients()["prefill"]
    base = fit["ms_per_giga_weight"] * sizes.linear_params / GIGA * prompt + fit["layer_ms"] * sizes.layers
    return float(base + _group_ns("prefill", spec) * 1e-6 * groups(sizes, spec) * prompt)


def memory(sizes: Sizes, spec: Scheme, context: int) -> Memory:
    """Memory with a context of ``context`` tokens."""
    fit = coefficients()["memory"]
    matrices = sizes.linear_params + sizes.lm_head_params
    scales = fit["bytes_per_group"] * matrices / spec.group_size if spec.group_size else 0.0
    return Memory(
        weights=round(fit["bytes_per_weight"] * matrices + scales),
        embedding=round(fit["bytes_per_embedding"] * sizes.lm_head_params),
        kv=sizes.kv_bytes_per_token * context,
        runtime=round(fit["runtime_bytes"]),
    )


def groups(sizes: Sizes, spec: Scheme) -> float:
    """Groups that the linear layers hold beyond one per row; 0 without groups."""
    return sizes.linear_params / spec.group_size if spec.group_size else 0.0


def _group_ns(kind: str, spec: Scheme) -> float:
    known: dict[str, float] = coefficients()[kind]["group_ns"]
    if not spec.group_size:
        return 0.0
    # Nobody published g256: between the two that were, on a logarithmic scale.
    return known.get(spec.name, math.sqrt(known["w8a8_g128"] * known["w8a8_g512"]))


def _spread(kind: str, spec: Scheme, sizes: Sizes) -> tuple[float, float]:
    """Factors from a predicted speed to the low and the high end of its interval."""
    fit = coefficients()
    known: dict[str, list[float]] = fit["interval"][kind]
    names = [spec.name] if spec.name in known else ["w8a8_g128", "w8a8_g512"]
    if sizes.linear_params < fit["range"]["dense_from"]:
        names.append("small")
    return min(known[name][0] for name in names), max(known[name][1] for name in names)


def _attention_ms(sizes: Sizes, prompt: int) -> float:
    """What attention may add to a prompt longer than any published: the NPU's fp16 has half the rate of its int8."""
    longest = coefficients()["range"]["prompt_tokens"][1]
    if prompt <= longest:
        return 0.0
    products = sizes.layers * sizes.attention_width * (float(prompt) ** 2 - float(longest) ** 2)
    return float(2 * coefficients()["prefill"]["ms_per_giga_weight"] * products / GIGA)


def _condition(work: Workload, soc: Soc) -> _Condition:
    if work.bandwidth_gb_s is not None:
        likely = lowest = work.bandwidth_gb_s / coefficients()["decode"]["bandwidth_gb_s"]
    elif work.ddr_mhz is not None:
        best = soc.bandwidth(max(soc.ddr_gb_s))[1]
        lowest, likely = (speed / best for speed in soc.bandwidth(work.ddr_mhz))
    else:
        likely = lowest = 1.0
    return _Condition(likely, lowest, *CORE_FACTORS[work.cores])


def _scheme(dtype: str) -> Scheme:
    spec = SCHEMES.get(dtype)
    if spec is None:
        raise UsageError(f"unknown dtype {dtype!r}: choose one of {', '.join(PREDICTED)}")
    if not spec.quantised:
        raise UsageError(f"no speed of {dtype} on an RK3588 has been published: choose one of {', '.join(PREDICTED)}")
    return spec


def _check(work: Workload, soc: Soc) -> None:
    if work.prompt < 1 or work.answer < 1 or work.context < 1:
        raise UsageError("prompt, answer and context have to be 1 token or more")
    if work.prompt > work.context - CONTEXT_RESERVE:
        raise UsageError(
            f"a prompt of {work.prompt} tokens does not go into a context of {work.context}: the runtime takes "
            f"{work.context - CONTEXT_RESERVE} at most"
        )
    if work.cores not in CORE_FACTORS or work.cores > soc.npu_cores:
        raise UsageError(f"{work.cores} NPU cores: the {soc.name} has {soc.npu_cores}")
    if work.ddr_mhz is not None and work.bandwidth_gb_s is not None:
        raise UsageError("give the memory's clock or its measured bandwidth, not both")
    if work.ddr_mhz is not None and not 100 <= work.ddr_mhz <= 10_000:
        raise UsageError(f"{work.ddr_mhz} MHz is no clock of this memory: it runs at 528 to 2112 MHz and thereabouts")
    if work.bandwidth_gb_s is not None and not 0.1 <= work.bandwidth_gb_s <= 1000:
        raise UsageError(f"{work.bandwidth_gb_s:g} GB/s is no bandwidth of this memory: expect 5 to 35 GB/s")


def _notes(sizes: Sizes, spec: Scheme, work: Workload, soc: Soc) -> list[str]:
    fit = coefficients()
    known = fit["range"]
    notes = []
    if sizes.linear_params < known["dense_from"]:
        notes.append(
            f"Extrapolated: below {known['dense_from'] / GIGA:.2f} G weights one model has been published "
            f"({known['smallest']}); the formula without it misses it by {known['smallest_error']:.0%}."
        )
    if sizes.linear_params > known["linear_params"][1]:
        notes.append(f"Extrapolated: the largest published model has {known['linear_params'][1] / GIGA:.1f} G weights.")
    if sizes.linear_params < known["memory_from"]:
        notes.append("Extrapolated: runtime 1.1.1's memory is published from 1 G weights up.")
    if spec.name == "w8a8_g128":
        notes.append("g128: four published models, which differ widely; expect anything inside the interval.")
    elif spec.name == "w8a8_g256":
        notes.append("Extrapolated: no figures for g256 are published; this lies between g128 and g512.")
    notes += _condition_notes(work, soc, known)
    if memory(sizes, spec, work.context).total > NPU_WINDOW:
        notes.append("More than the 4 GiB of one NPU address space: watch for `failed to malloc npu memory`.")
    return notes


def _condition_notes(work: Workload, soc: Soc, known: dict[str, Any]) -> list[str]:
    notes = []
    shortest, longest = known["prompt_tokens"]
    if not shortest <= work.prompt <= longest:
        notes.append(f"Extrapolated: published prompts have {shortest} to {longest} tokens.")
    if work.context > MAX_CONTEXT:
        notes.append(f"Runtime 1.1.x gives good answers within {MAX_CONTEXT} tokens of context only.")
    if work.cores < 3:
        notes.append("Extrapolated: how fast fewer than three cores are is known from one source.")
    if work.ddr_mhz is not None and work.ddr_mhz < max(soc.ddr_gb_s):
        notes.append("Extrapolated: slower memory clocks are known from few boards; prefill may suffer as well.")
    elif work.ddr_mhz is not None and work.ddr_mhz > max(soc.ddr_gb_s):
        notes.append(f"Extrapolated: nothing is known above {max(soc.ddr_gb_s)} MHz.")
    published = coefficients()["decode"]["bandwidth_gb_s"]
    if work.bandwidth_gb_s is not None and not 0.9 < work.bandwidth_gb_s / published < 1.1:
        notes.append(f"Extrapolated: the published figures were measured at about {published:.0f} GB/s.")
    return notes
