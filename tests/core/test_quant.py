"""The fast quantiser equals the reference bit for bit, and both keep what quantisation promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rk3588 import hostlib, quant
from rk3588.errors import UsageError
from rk3588.quant import SCHEMES, Scheme

Array = npt.NDArray[Any]
QUANTISED = [s for s in SCHEMES.values() if s.quantised]
_BITS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
_EXPONENT = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}


def to_float32(bits: Array, kind: str) -> npt.NDArray[np.float32]:
    if kind == "F32":
        return bits.view(np.float32)
    if kind == "F16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


@st.composite
def finite_bits(draw: st.DrawFn) -> tuple[str, Array]:
    """Rows of any finite bit patterns of a type; every magnitude there is, subnormal numbers and both zeros."""
    kind = draw(st.sampled_from(sorted(_BITS)))
    shape = draw(st.tuples(st.integers(1, 4), st.one_of(st.integers(1, 80), st.integers(120, 700))))
    seed = draw(st.integers(0, 2**32 - 1))
    top = np.iinfo(_BITS[kind]).max
    if draw(st.booleans()):  # all over the range of the type
        bits = np.random.default_rng(seed).integers(0, top, shape, _BITS[kind], endpoint=True)
    else:  # as weights are: within a few powers of two, or a chosen scale
        scale = 2.0 ** draw(st.integers(-14, 14) if kind == "F16" else st.integers(-140, 120))
        with np.errstate(over="ignore"):
            values = (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
            whole = values.astype(np.float16).view(np.uint16) if kind == "F16" else values.view(np.uint32)
        bits = (whole >> 16 if kind == "BF16" else whole).astype(_BITS[kind])
    infinite = (bits & _EXPONENT[kind]) == _EXPONENT[kind]
    return kind, np.where(infinite, bits & ~np.array(_EXPONENT[kind], bits.dtype), bits)


@given(finite_bits(), st.sampled_from(QUANTISED))
def test_fast_equals_reference(source: tuple[str, Array], spec: Scheme) -> None:
    kind, bits = source
    weight = to_float32(bits, kind)
    q, scales = hostlib.quantise(bits, kind, spec)
    q_reference, scales_reference = quant.quantise(weight, spec)
    np.testing.assert_array_equal(scales.view(np.uint32), scales_reference.view(np.uint32))
    np.testing.assert_array_equal(q, q_reference)


@given(finite_bits(), st.sampled_from(QUANTISED))
def test_range_and_error(source: tuple[str, Array], spec: Scheme) -> None:
    kind, bits = source
    weight = to_float32(bits, kind)
    q, scales = hostlib.quantise(bits, kind, spec)
    assert q.min() >= -127
    assert np.isfinite(scales).all()
    assert ((scales == 0) | (scales >= quant.MIN_SCALE)).all()
    each = np.repeat(scales, spec.group_size or weight.shape[1], axis=1)[:, : weight.shape[1]].astype(np.float64)
    error = np.abs(q * each - weight.astype(np.float64))
    # Half a step, and the rounding of the quotient: at most 127 ulp of a half. A zero scale drops what is below it.
    bound = np.where(each == 0, 127 * quant.MIN_SCALE, each * (0.5 + 127 * 2.0**-23))
    assert (error <= bound).all()


@given(finite_bits())
def test_every_group_uses_the_whole_range(source: tuple[str, Array]) -> None:
    """The largest weight of a group is +-127, unless the group is too small to be scaled."""
    kind, bits = source
    spec = SCHEMES["w8a8_g128"]
    q, scales = hostlib.quantise(bits, kind, spec)
    for g in range(scales.shape[1]):
        largest = np.abs(q[:, g * 128 : (g + 1) * 128].astype(int)).max(axis=1)
        np.testing.assert_array_equal(largest, np.where(scales[:, g] == 0, 0, 127))


def test_halves_round_to_even() -> None:
    # The scale is exactly 1, so each weight is its own quotient.
    weight = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], np.float32)
    spec = SCHEMES["w8a8"]
    for q, scales in (quant.quantise(weight, spec), hostlib.quantise(weight, "F32", spec)):
        assert q.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]
        assert scales.tolist() == [[1.0]]


@pytest.mark.parametrize("kind", sorted(_BITS))
@pytest.mark.parametrize("payload", [0, 1])
def test_the_first_value_that_is_not_finite_is_named(kind: str, payload: int) -> None:
    """Infinity (payload 0) and NaN, in either sign, also in a short last group; the first of two."""
    bits = np.zeros((5, 300), _BITS[kind])
    sign = 1 << (8 * bits.itemsize - 1)
    bits[3, 299] = _EXPONENT[kind] | payload
    bits[4, 0] = _EXPONENT[kind] | payload | sign
    for spec in QUANTISED:
        with pytest.raises(ValueError) as caught:
            hostlib.quantise(bits, kind, spec)
        assert caught.value.args == (3, 299)


@given(hnp.arrays(np.float32, (3, 576), elements=st.floats(-4, 4, width=32)))
def test_a_short_last_group_is_its_own(weight: npt.NDArray[np.float32]) -> None:
    """576 = 4 x 128 + 64: the last 64 inputs quantise as a row of their own."""
    spec = SCHEMES["w8a8_g128"]
    q, scales = hostlib.quantise(weight, "F32", spec)
    assert scales.shape == (3, 5)
    q_alone, scale_alone = hostlib.quantise(weight[:, 512:], "F32", SCHEMES["w8a8"])
    np.testing.assert_array_equal(q[:, 512:], q_alone)
    np.testing.assert_array_equal(scales[:, 4:], scale_alone)


def test_dequantise_inverts_up_to_rounding() -> None:
    weight = np.random.default_rng(0).standard_normal((7, 320)).astype(np.float32)
    for spec in QUANTISED:
        q, scales = quant.quantise(weight, spec)
        back = quant.dequantise(q, scales, spec)
        each = np.repeat(scales, spec.group_size or 320, axis=1)[:, :320]
        assert (np.abs(back - weight) <= each * 0.5001).all()
        assert not np.array_equal(back, weight)


def test_every_bf16_becomes_the_nearest_float16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    held = bits[(bits & 0x7FFF) < 0x4780]  # 65536: as infinity, it would not be kept
    halves = hostlib.bf16_to_float16(held)
    assert halves is not None
    np.testing.assert_array_equal(halves.view(np.uint16), to_float32(held, "BF16").astype(np.float16).view(np.uint16))
    for refused in (0x4780, 0x7F80, 0xFF80, 0x7FC1):
        assert hostlib.bf16_to_float16(np.array([0, refused, 0], np.uint16)) is None


@pytest.mark.parametrize(
    ("name", "k", "groups", "short", "size"),
    [
        ("w8a8", 576, 1, 0, 2 * 576 + 4 * 2),
        ("w8a8_g128", 576, 5, 64, 2 * 576 + 4 * 10),
        ("w8a8_g256", 576, 3, 64, 2 * 576 + 4 * 6),
        ("w8a8_g512", 1536, 3, 0, 2 * 1536 + 4 * 6),
        ("fp16", 576, 1, 0, 4 * 576),
        ("fp32", 576, 1, 0, 8 * 576),
    ],
)
def test_scheme_arithmetic(name: str, k: int, groups: int, short: int, size: int) -> None:
    spec = quant.scheme(name)
    assert (spec.groups(k), spec.short_group(k), spec.weight_bytes(2, k)) == (groups, short, size)


def test_an_unknown_dtype_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'w4a16'.*w8a8, w8a8_g128, .*fp32"):
        quant.scheme("w4a16")
