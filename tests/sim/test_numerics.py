"""The engine against the NumPy reference of docs/numerics.md, for equality: kernels, layers, blocks, whole models."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rk3588 import bundle, hostlib, quant
from rk3588.errors import SimError
from rkconvert.adapters import in_bundle, lora
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from tests import digests, loras, models
from tests.digests import Job
from tests.models import Tiny
from tests.plans import make_plan
from tests.reference import Reference, accumulate

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.int8]
KERNELS = ("scalar", "avx2", "avx512vnni", "neon")
DTYPES = ("w8a8", "w8a8_g128", "fp16", "fp32")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
SHAPES = {
    "gqa": Tiny(),
    "llama32": Tiny(seed=1, hidden=128, heads=8, kv_heads=2, head_dim=64, intermediate=352, tied=True,
                    rope_theta=500000.0, rope_scaling=LLAMA3),
    "heads80": Tiny(seed=2, layers=1, hidden=160, heads=2, kv_heads=1, head_dim=80, intermediate=192),
    # Nothing divides by 4, 16 or 128; groups of 128 leave one of 41 and one of 66.
    "odd": Tiny(seed=3, hidden=66, heads=3, kv_heads=3, head_dim=22, intermediate=297, vocab_size=397),
    "grouped": Tiny(seed=4, layers=1, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, tied=True),
}  # fmt: skip


@functools.cache
def why_not(kernel: str) -> str:
    """Why this machine cannot run ``kernel``; empty: it can."""
    one = np.ones((1, 1), np.int8)
    try:
        hostlib.gemm_i8(one, one, kernel)
    except SimError as error:
        assert "cannot run" in str(error) or "unknown kernel" in str(error)
        return str(error)
    return ""


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    if reason := why_not(request.param):
        pytest.skip(reason)
    name: str = request.param
    return name


def build(folder: Path, tiny: Tiny, *dtypes: str) -> dict[str, Path]:
    """``model.sim.gguf`` of ``tiny`` by dtype."""
    source = models.write_llama(folder / "source", models.config(tiny, "bf16"), tiny.weights(), dtype="bf16")
    plan = make_plan(open_source(source), "tiny", folder, [quant.scheme(dtype) for dtype in dtypes], threads=1)
    return {dtype: path / bundle.SIM_MODEL for dtype, path in zip(dtypes, convert(plan), strict=True)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Path]:
    """``model.sim.gguf`` of every shape and dtype."""
    found = {}
    for name, tiny in SHAPES.items():
        for dtype, path in build(tmp_path_factory.mktemp(name), tiny, *DTYPES).items():
            found[name, dtype] = path
    return found


@pytest.fixture(scope="module")
def expected(built: Mapping[tuple[str, str], Path]) -> Mapping[Path, str]:
    """The digest of each model's logits over 39 tokens, by the reference."""
    return {path: digests.digest(Reference(path).logits(tokens(39))) for path in built.values()}


def tokens(n: int) -> list[int]:
    return [(11 + 37 * i + 3 * i * i) % 384 for i in range(n)]


def hard_inputs(n: int, k: int) -> Floats:
    """Activations as models have them, and as they should not: nothing, far too little, outliers, halves."""
    rng = np.random.default_rng(n * k)
    x = rng.standard_normal((n, k)).astype(np.float32)
    x[1] = 0
    x[2] *= np.float32(1e-40)
    x[3, :] = np.float32(2e-38)
    x[4, k // 2] = np.float32(5e4)
    # Halves of the scale, which round to even.
    x[5] = (rng.integers(-126, 126, k) + np.float32(0.5)) * np.float32(0.25)
    x[5, 0] = np.float32(127 * 0.25)
    x[6] = np.where(rng.random(k) < 0.5, -1, 1).astype(np.float32)
    x[7] *= np.float32(1e30)
    x[8, ::3] = np.nan
    x[9] = np.nan
    x[10, k // 3], x[11, [0, k - 1]] = np.inf, (np.nan, -np.inf)
    return x


@st.composite
def operands(draw: st.DrawFn) -> tuple[Bytes, Bytes]:
    """int8 (rows, K) and (tokens, K) of any small shape: random, or all at an end of the range."""
    rows, k, n = draw(st.integers(1, 70)), draw(st.integers(1, 200)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def side(size: int) -> Bytes:
        kind = draw(st.sampled_from(["any", "127", "-127", "signs"]))
        if kind == "any":
            return rng.integers(-127, 128, (size, k), dtype=np.int8)
        if kind == "signs":
            return rng.choice(np.array([-127, 127], np.int8), (size, k))
        return np.full((size, k), int(kind), np.int8)

    return side(rows), side(n)


@given(pair=operands())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_accumulators_are_exact(kernel: str, pair: tuple[Bytes, Bytes]) -> None:
    w, x = pair
    np.testing.assert_array_equal(hostlib.gemm_i8(w, x, kernel), x.astype(np.int64) @ w.astype(np.int64).T)


@pytest.mark.parametrize(("a", "b"), [(127, 127), (127, -127), (-127, 127), (-127, -127)])
def test_accumulators_hold_the_largest_sums(kernel: str, a: int, b: int) -> None:
    k = 65541  # rows longer than any model's: half of what an int32 holds
    w, x = np.full((17, k), a, np.int8), np.full((5, k), b, np.int8)
    np.testing.assert_array_equal(hostlib.gemm_i8(w, x, kernel), np.full((5, 17), a * b * k, np.int32))


def test_longer_rows_than_an_int32_holds_are_refused() -> None:
    row = np.full((1, 131072), -128, np.int8)
    assert hostlib.gemm_i8(row[:, :-1], row[:, :-1], "scalar")[0, 0] == 131071 * 128 * 128
    with pytest.raises(SimError, match="at most 131071 products"):
        hostlib.gemm_i8(row, row)


@pytest.mark.parametrize("k", [1, 31, 64, 1023, 1024, 1025, 2500])
def test_the_reference_accumulates_exactly(k: int) -> None:
    rng = np.random.default_rng(k)
    w, x = rng.choice(np.array([-127, 127], np.int8), (9, k)), rng.integers(-127, 128, (3, k), dtype=np.int8)
    w[0], x[0] = 127, 127
    np.testing.assert_array_equal(accumulate(w, x), x.astype(np.int64) @ w.astype(np.int64).T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_layers_equal_the_reference(built: Mapping[tuple[str, str], Path], shape: str, dtype: str) -> None:
    path = built[shape, dtype]
    reference = Reference(path)
    names = ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_output.weight", "blk.0.ffn_down.weight"]
    with hostlib.SimModel(path, threads=2) as model:
        for name in names:
            n, k = reference.tensors[name].shape
            x = hard_inputs(13, k)
            with np.errstate(invalid="ignore"):
                wanted = reference.linear(name, x)
            np.testing.assert_array_equal(model.linear(name, x, n), wanted, err_msg=name)
            np.testing.assert_array_equal(model.linear(name, x[4:5], n), wanted[4:5], err_msg=f"{name}, one token")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_equal_the_reference(built: Mapping[tuple[str, str], Path], shape: str, dtype: str) -> None:
    reference = Reference(built[shape, dtype])
    x = reference.embed(tokens(35)) * np.float32(4)
    with hostlib.SimModel(built[shape, dtype], threads=2) as model:
        for index in range(reference.layers):
            np.testing.assert_array_equal(model.layer(index, x), reference.layer(index, x), err_msg=f"block {index}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_models_equal_the_reference(built: Mapping[tuple[str, str], Path], shape: str, dtype: str) -> None:
    reference = Reference(built[shape, dtype])
    with hostlib.SimModel(built[shape, dtype], threads=2) as model:
        for n in (1, 50):
            np.testing.assert_array_equal(model.logits(tokens(n)), reference.logits(tokens(n)), err_msg=f"{n} tokens")


def test_long_prompts_equal_the_reference(built: Mapping[tuple[str, str], Path]) -> None:
    """Over the edges of chunks (128 tokens) and of the sums in attention."""
    path, ids = built["llama32", "w8a8_g128"], tokens(291)
    with hostlib.SimModel(path, threads=2) as model:
        np.testing.assert_array_equal(model.logits(ids), Reference(path).logits(ids))


@st.composite
def any_shape(draw: st.DrawFn) -> Tiny:
    kv_heads = draw(st.integers(1, 3))
    return Tiny(
        seed=draw(st.integers(0, 2**32)),
        layers=1,
        hidden=draw(st.integers(2, 150)),
        heads=kv_heads * draw(st.integers(1, 7)),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 45)),
        intermediate=draw(st.integers(2, 300)),
        tied=draw(st.booleans()),
        rope_scaling=draw(st.sampled_from([None, LLAMA3])),
    )


@given(tiny=any_shape(), dtype=st.sampled_from(["w8a8", "w8a8_g128", "fp16", "fp32"]), n=st.integers(1, 20))
@settings(max_examples=25)
def test_any_shape_equals_the_reference(
    tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, dtype: str, n: int
) -> None:
    path = build(tmp_path_factory.mktemp("any"), tiny, dtype)[dtype]
    with hostlib.SimModel(path, threads=2) as model:
        np.testing.assert_array_equal(model.logits(tokens(n)), Reference(path).logits(tokens(n)))


def test_every_kernel_thread_count_and_split_gives_the_same_bits(expected: Mapping[Path, str], kernel: str) -> None:
    """Prefill equals token by token, 1 thread equals several, and all of them the reference."""
    ways = [(1, 0), (1, 1), (2, 7), (3, 38)]
    jobs = [Job(path, tokens(39), threads, chunk) for path in expected for threads, chunk in ways]
    found = digests.run(kernel, jobs)
    assert not [job for job, one in zip(jobs, found, strict=True) if one != expected[job.model]]


def adapter(folder: Path, tiny: Tiny, **changes: Any) -> Path:
    """A GGUF adapter for ``tiny``, as the converter writes it."""
    folder = loras.peft_lora(folder, tiny, **changes)
    source = open_source(models.write_llama(folder / "base", models.config(tiny, "bf16"), tiny.weights(), dtype="bf16"))
    in_bundle.write_gguf(lora.read(lora.LoraOption(folder, "a", 1.0), source), source.config, folder / "a.gguf")
    return folder / "a.gguf"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "rank"), [("gqa", 4), ("odd", 21), ("llama32", 16), ("heads80", 1)])
def test_adapters_equal_the_reference(
    built: Mapping[tuple[str, str], Path], tmp_path: Path, shape: str, rank: int, dtype: str
) -> None:
    path, file = built[shape, dtype], adapter(tmp_path, SHAPES[shape], rank=rank, alpha=5)
    reference = Reference(path)
    plain = reference.logits(tokens(35))
    with hostlib.SimModel(path, threads=2) as model:
        for scale in (1.0, -0.3):
            reference.use_lora(file, scale)
            wanted = reference.logits(tokens(35))
            model.use_lora(file, scale)
            np.testing.assert_array_equal(model.logits(tokens(35)), wanted, err_msg=f"scale {scale}")
            assert np.abs(wanted - plain).max() > 0.1
        model.use_lora(file, 0.0)
        np.testing.assert_array_equal(model.logits(tokens(35)), plain, err_msg="scale 0")
        model.use_lora(None)
        np.testing.assert_array_equal(model.logits(tokens(35)), plain, err_msg="none again")


def test_adapters_give_the_same_bits_on_every_kernel_thread_count_and_split(
    built: Mapping[tuple[str, str], Path], tmp_path: Path, kernel: str
) -> None:
    jobs, wanted = [], []
    for shape, dtype in (("odd", "w8a8_g128"), ("gqa", "w8a8"), ("gqa", "fp16")):
        path, file = built[shape, dtype], adapter(tmp_path / f"{shape}-{dtype}", SHAPES[shape], rank=5)
        reference = Reference(path)
        reference.use_lora(file, 1.0)
        ways = [(1, 0), (1, 1), (2, 7), (3, 38)]
        jobs += [Job(path, tokens(39), threads, chunk, file) for threads, chunk in ways]
        wanted += [digests.digest(reference.logits(tokens(39)))] * len(ways)
    assert digests.run(kernel, jobs) == wanted


@pytest.mark.parametrize("setting", ["token", "tile64", "group"])
def test_shared_activation_scales_equal_the_reference(
    built: Mapping[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("RKSIM_ACT_SCALE", setting)
    path, ids = built["odd", "w8a8_g128"], tokens(150)
    with hostlib.SimModel(path, threads=2) as model:
        found = model.logits(ids)
    np.testing.assert_array_equal(found, Reference(path, setting).logits(ids))
    if setting != "token":  # or the setting does nothing
        assert not np.array_equal(found, Reference(path).logits(ids))


@pytest.mark.parametrize("setting", ["token", "tile64", "group"])
def test_what_is_no_number_counts_as_nothing(
    built: Mapping[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """Embeddings and adapters may bring it. (Its integer, and the sum of two, have no meaning: see the sanitisers.)"""
    monkeypatch.setenv("RKSIM_ACT_SCALE", setting)
    with hostlib.SimModel(built["gqa", "w8a8"], threads=1) as model:
        hidden, name = model.info.hidden, "blk.0.attn_q.weight"
        x = np.linspace(-1, 1, 3 * hidden, dtype=np.float32).reshape(3, hidden)
        x[0, ::2] = x[1] = np.nan
        found = model.linear(name, x, hidden)
        np.testing.assert_array_equal(found, model.linear(name, np.nan_to_num(x), hidden))
        assert not found[1].any() and found[0].any()
        assert np.isnan(model.layer(0, x)).any()


def test_an_unknown_setting_is_one_sentence(
    built: Mapping[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RKSIM_ACT_SCALE", "tile65")
    with hostlib.SimModel(built["gqa", "w8a8"]) as model, pytest.raises(SimError, match="'tile65': there are token"):
        model.logits([1])


def test_tokens_outside_the_vocabulary_are_refused(built: Mapping[tuple[str, str], Path]) -> None:
    with hostlib.SimModel(built["gqa", "w8a8"]) as model:
        for bad in (384, -1, 2**31 - 1):
            with pytest.raises(SimError, match="outside the vocabulary of 384"):
                model.logits([1, bad])
        with pytest.raises(SimError, match="1 to 1048576 tokens"):
            model.logits([])


# SmolLM2 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2_ids() -> list[int]:
    from tests.golden_logits import cases

    return cases.SMOLLM2_IDS


@pytest.mark.model
@pytest.mark.parametrize(("dtype", "n"), [("w8a8", 48), ("w8a8_g128", 48), ("fp32", 5)])
def test_smollm2_equals_the_reference(
    smollm2_bundles: Mapping[str, Path], smollm2_ids: list[int], dtype: str, n: int
) -> None:
    """Equality stands for a KL divergence of 0 and the same best token everywhere."""
    path, ids = smollm2_bundles[dtype] / bundle.SIM_MODEL, smollm2_ids[:n]
    with hostlib.SimModel(path, threads=2) as model:
        np.testing.assert_array_equal(model.logits(ids), Reference(path).logits(ids))


@pytest.mark.model
def test_smollm2_has_the_same_bits_on_every_kernel(
    smollm2_bundles: Mapping[str, Path], smollm2_ids: list[int], kernel: str
) -> None:
    path = smollm2_bundles["w8a8_g128"] / bundle.SIM_MODEL
    ways = [(1, 0), (2, 1), (2, 7)]
    found = digests.run(kernel, [Job(path, smollm2_ids[:20], threads, chunk) for threads, chunk in ways])
    with hostlib.SimModel(path, threads=2) as model:
        wanted = digests.digest(model.logits(smollm2_ids)[:20])  # a longer prompt does not change its beginning
    assert found == [wanted] * len(ways)
