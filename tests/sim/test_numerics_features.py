"""Each feature of docs/sim-gguf.md against the NumPy reference, for equality: kernels, splits, numbers of threads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rk3588 import hostlib
from tests import digests
from tests.artifacts import LINEAR, Model
from tests.digests import Job
from tests.reference import Floats, Reference
from tests.sim.test_numerics import DTYPES
from tests.sim.test_numerics import kernel as kernel

NORMS = ("attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
LONG: Mapping[str, Any] = {"rope.scaling.original_context_length": 30, "rope.scaling.attn_factor": 1.19}
# Windows and original contexts are shorter than the prompt. No size divides by 4; groups of 128 leave one of 9.
CASES = {
    "biases": Model(biases=(*LINEAR, "output")),
    "LayerNorm": Model(layer_norm=True),
    "LayerNorm without biases": Model(layer_norm=True, norm_biases=False),
    "head norms": Model(norms=("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm")),
    "post norms": Model(norms=("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")),
    "post norms alone": Model(norms=("post_attention_norm", "post_ffw_norm")),
    "parallel": Model(norms=("attn_norm",), keys={"use_parallel_residual": True}),
    "no gate": Model(gated=False),
    "GELU": Model(keys={"activation": "gelu_tanh"}),
    "GELU without gate": Model(gated=False, keys={"activation": "gelu_tanh"}),
    "soft caps": Model(keys={"attn_logit_softcapping": 1.5, "final_logit_softcapping": 5.0}),
    "scales": Model(
        keys={"attention.scale": 0.3, "embedding_scale": 6.5, "residual_scale": 0.4, "logit_scale": 0.27}, tied=True
    ),
    "windows": Model(layers=4, keys={"attention.sliding_window": (8, 0, 17, 1)}),
    "part of a head": Model(turned=6, factors=True),
    "layers without RoPE": Model(layers=3, keys={"rope.layers": (1, 0, 1)}),
    "local base": Model(layers=3, factors=True, keys={"rope.layers": (2, 1, 0), "rope.freq_base_local": 50.0}),
    "long factors": Model(factors=True, long_factors=True, keys=LONG),
    "temperature": Model(keys={"attention.temperature_scale": 0.3, "attention.temperature_length": 5}),
    "all": Model(
        layers=3, kv_heads=3, turned=12, layer_norm=True, norms=NORMS, biases=(*LINEAR, "output"), factors=True,
        long_factors=True, keys={
            **LONG, "activation": "gelu_tanh", "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0,
            "attention.scale": 0.2, "embedding_scale": 8.0, "residual_scale": 0.7, "logit_scale": 1.4,
            "attention.sliding_window": (9, 0, 20), "rope.layers": (2, 1, 0), "rope.freq_base_local": 77.0,
            "attention.temperature_scale": 0.2, "attention.temperature_length": 7,
        },
    ),
    "all in parallel": Model(
        kv_heads=3, turned=8, layer_norm=True, norms=("attn_norm",), biases=("attn_v", "ffn_up", "output"), gated=False,
        keys={"activation": "gelu_tanh", "use_parallel_residual": True, "residual_scale": 0.5},
    ),
}  # fmt: skip
TOKENS = 39


def ids(n: int, vocabulary: int = 131) -> list[int]:
    return [(11 + 37 * i + 3 * i * i) % vocabulary for i in range(n)]


def logits(path: Path, tokens: list[int], **options: Any) -> Floats:
    with hostlib.SimModel(path, threads=2) as model:
        return model.logits(tokens, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("features")
    return {
        (name, dtype): model.write(folder / f"{name}-{dtype}.gguf", dtype)
        for name, model in CASES.items()
        for dtype in DTYPES
    }


@pytest.fixture(scope="module")
def expected(built: Mapping[tuple[str, str], Path]) -> Mapping[Path, Floats]:
    return {path: Reference(path).logits(ids(TOKENS)) for path in built.values()}


@pytest.mark.parametrize("name", CASES)
def test_a_feature_equals_the_reference(
    built: Mapping[tuple[str, str], Path], expected: Mapping[Path, Floats], name: str
) -> None:
    for dtype in DTYPES:
        path = built[name, dtype]
        np.testing.assert_array_equal(logits(path, ids(TOKENS)), expected[path], err_msg=dtype)
        assert expected[path].std() > 0.2


def test_every_kernel_thread_count_and_split_gives_the_same_bits(expected: Mapping[Path, Floats], kernel: str) -> None:
    """Prefill equals token by token, whatever the features."""
    ways = [(1, 1), (2, 7), (3, 38)]
    jobs = [Job(path, ids(TOKENS), threads, chunk) for path in expected for threads, chunk in ways]
    wanted = {path: digests.digest(values) for path, values in expected.items()}
    found = digests.run(kernel, jobs)
    assert not [job for job, one in zip(jobs, found, strict=True) if one != wanted[job.model]]


def without(model: Model) -> Iterator[tuple[str, Model]]:
    """``model`` with one of its features off, for each of them."""
    temperature = ("attention.temperature_scale", "attention.temperature_length")
    together = {temperature[0]: temperature[1], temperature[1]: temperature[0], "rope.freq_base_local": "rope.layers"}
    for key in model.keys:
        off = {key, together.get(key, key)}
        if key != "rope.scaling.original_context_length":
            yield key, replace(model, keys={k: v for k, v in model.keys.items() if k not in off})
    for norm in model.norms:
        if "use_parallel_residual" not in model.keys:
            yield norm, replace(model, norms=tuple(one for one in model.norms if one != norm))
    for bias in model.biases:
        yield bias, replace(model, biases=tuple(one for one in model.biases if one != bias))
    changed = {"layer_norm": False, "norm_biases": True, "gated": True, "turned": 0, "factors": False}
    for name, value in changed.items():
        if getattr(model, name) != value and not (name == "norm_biases" and not model.layer_norm):
            yield name, replace(model, **{name: value})  # type: ignore[arg-type]
    if model.long_factors:
        yield "long_factors", replace(model, long_factors=False, keys={**model.keys, next(iter(LONG)): None})


@pytest.mark.parametrize("name", CASES)
def test_each_feature_shows(
    built: Mapping[tuple[str, str], Path], expected: Mapping[Path, Floats], name: str, tmp_path: Path
) -> None:
    """A feature that changes nothing would be equal to any reference."""
    here = expected[built[name, "fp32"]]
    features = dict(without(CASES[name]))
    assert features
    for feature, model in features.items():
        # A short prompt has the short factors: with the long ones alone, only a long prompt shows them.
        n = 30 if feature == "factors" and model.long_factors else TOKENS
        wanted = here if n == TOKENS else logits(built[name, "fp32"], ids(n))
        assert np.abs(logits(model.write(tmp_path / "other.gguf"), ids(n)) - wanted).max() > 1e-3, feature


def test_long_prompts_equal_the_reference(tmp_path: Path) -> None:
    """Windows on both sides of the edge of a chunk of 128 tokens, and longer than one."""
    model = Model(layers=3, keys={"attention.sliding_window": (30, 200, 0), **LONG}, factors=True, long_factors=True)
    for dtype in ("w8a8_g128", "fp32"):
        path = model.write(tmp_path / dtype, dtype)
        wanted = Reference(path).logits(ids(291))
        for chunk in (0, 31):
            np.testing.assert_array_equal(logits(path, ids(291), chunk=chunk), wanted)


@pytest.mark.parametrize("setting", ["tile64", "group"])
def test_shared_activation_scales_equal_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("RKSIM_ACT_SCALE", setting)
    for name in ("all", "all in parallel"):
        path = CASES[name].write(tmp_path / name, "w8a8_g128")
        np.testing.assert_array_equal(logits(path, ids(150)), Reference(path, setting).logits(ids(150)))


def test_the_context_alone_chooses_the_factors(built: Mapping[tuple[str, str], Path]) -> None:
    """Of LongRoPE, once for all positions; what was asked before does not show."""
    path = built["long factors", "fp32"]
    short, long = Reference(path).logits(ids(30)), Reference(path, context=31).logits(ids(30))
    assert np.abs(short - long).max() > 0.01
    with hostlib.SimModel(path, threads=1) as model:
        for n, wanted in ((30, short), (31, long), (30, short), (12, short[:12]), (31, long)):
            np.testing.assert_array_equal(model.logits(ids(n))[:30], wanted[:n], err_msg=f"{n} tokens")


def test_rows_of_every_length(tmp_path: Path, kernel: str) -> None:
    """What is left over where vectors have 8 or 16 numbers: sizes from 1 on, each in all places at once."""
    jobs, wanted = [], []
    for n in (*range(1, 20), 23, 31, 33, 47):
        model = Model(
            seed=n, layers=1, hidden=n, intermediate=n, heads=2, kv_heads=1, head_dim=2 * n, vocab=max(n, 3),
            layer_norm=n % 2 == 0, gated=n % 3 > 0, norms=NORMS, biases=(*LINEAR, "output"), turned=2 * (n // 2 + 1),
            keys={"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "embedding_scale": 2.5,
                  "residual_scale": 0.8, "activation": ("silu", "gelu_tanh")[n % 2]},
        )  # fmt: skip
        for dtype in ("w8a8", "fp16"):
            path = model.write(tmp_path / f"{n}-{dtype}", dtype)
            jobs.append(Job(path, ids(n, model.vocab)))
            wanted.append(digests.digest(Reference(path).logits(ids(n, model.vocab))))
    assert digests.run(kernel, jobs) == wanted


@st.composite
def any_model(draw: st.DrawFn) -> Model:
    layers, kv_heads, half = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 20))
    parallel = draw(st.booleans())
    norms = ["attn_norm"] if parallel else draw(st.lists(st.sampled_from(NORMS), unique=True))
    heads = draw(st.lists(st.sampled_from(["attn_q_norm", "attn_k_norm"]), unique=True))
    number = st.floats(0.125, 2, width=32)
    choices: dict[str, st.SearchStrategy[Any]] = {
        **{f"{name}_scale": number for name in ("embedding", "residual", "logit")},
        **dict.fromkeys(("attention.scale", "attn_logit_softcapping", "final_logit_softcapping"), number),
        "rope.scaling.attn_factor": number,
        "activation": st.sampled_from(["silu", "gelu_tanh"]),
        "attention.sliding_window": st.tuples(*[st.integers(0, 25)] * layers),
        "rope.layers": st.tuples(*[st.integers(0, 2)] * layers),
    }
    keys = {key: draw(choices[key]) for key in draw(st.lists(st.sampled_from(list(choices)), unique=True))}
    factors = draw(st.booleans())
    return Model(
        seed=draw(st.integers(0, 2**31)), layers=layers, hidden=draw(st.integers(1, 90)), heads=kv_heads * draw(
        st.integers(1, 3)), kv_heads=kv_heads, head_dim=2 * half, turned=2 * draw(st.integers(1, half)),
        intermediate=draw(st.integers(1, 200)), vocab=draw(st.integers(3, 100)), tied=draw(st.booleans()),
        layer_norm=draw(st.booleans()), norm_biases=draw(st.booleans()), gated=draw(st.booleans()),
        norms=tuple(dict.fromkeys([*norms, *heads])), factors=factors,
        biases=tuple(draw(st.lists(st.sampled_from([*LINEAR, "output"]), unique=True))),
        keys={**keys, "rope.freq_base_local": 20.0, **({"use_parallel_residual": True} if parallel else {})},
    )  # fmt: skip


@given(model=any_model(), dtype=st.sampled_from(DTYPES), n=st.integers(1, 30), chunk=st.integers(0, 30))
@settings(max_examples=25)
def test_any_features_equal_the_reference(
    tmp_path_factory: pytest.TempPathFactory, model: Model, dtype: str, n: int, chunk: int
) -> None:
    path = model.write(tmp_path_factory.mktemp("any") / "m.gguf", dtype)
    tokens = ids(n, model.vocab)
    with np.errstate(all="ignore"):  # without norms, numbers may grow out of fp16 and float32
        wanted = Reference(path).logits(tokens)
    np.testing.assert_array_equal(logits(path, tokens, chunk=chunk), wanted)


def test_numbers_that_grow_are_the_same_in_every_kernel(tmp_path: Path, kernel: str) -> None:
    jobs, wanted = [], []
    for dtype in DTYPES:
        model = Model(layers=3, norms=("ffn_norm",), keys={"embedding_scale": 3e3 if dtype == "w8a8" else 1e12})
        jobs.append(Job(model.write(tmp_path / dtype, dtype), ids(TOKENS), 2, 7))
        wanted.append(digests.digest(logits(jobs[-1].model, ids(TOKENS))))
    assert digests.run(kernel, jobs) == wanted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [3e3, 1e7, 1e12])
def test_numbers_that_grow_out_of_fp16_and_float32(tmp_path: Path, dtype: str, scale: float) -> None:
    """Infinite keys and values in the cache, sums that are no number, and what int8 makes of these."""
    for number, norms in enumerate(((), ("attn_q_norm", "ffn_norm"), ("attn_norm", "attn_k_norm", "post_ffw_norm"))):
        keys: dict[str, Any] = {"embedding_scale": scale, "attention.sliding_window": (7, 0, 11)}
        activation = ("silu", "gelu_tanh")[number % 2]
        model = Model(
            seed=number, layers=3, norms=norms, gated=number < 2, keys={**keys, "activation": activation},
            biases=("attn_v", "ffn_up") if number else (),
        )  # fmt: skip
        path = model.write(tmp_path / f"{number}.gguf", dtype)
        with np.errstate(all="ignore"):
            reference = Reference(path)
            x = reference.embed(ids(TOKENS))
            with hostlib.SimModel(path, threads=2) as opened:
                for index in range(reference.layers):
                    wanted = reference.layer(index, x)
                    np.testing.assert_array_equal(opened.layer(index, x), wanted, err_msg=f"{norms}, block {index}")
                    x = wanted
                wanted = reference.logits(ids(TOKENS))
                np.testing.assert_array_equal(opened.logits(ids(TOKENS), chunk=7), wanted, err_msg=f"{norms}")
