"""`--rotate`: a model that is turned says the same as before, whatever its family, its sizes and its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rk3588 import bundle, quant
from rk3588.errors import CheckpointError, UsageError
from rkconvert.architectures.model import EMBEDDING, OUTPUT
from rkconvert.artifact import reading
from rkconvert.artifact.blocks import block_jobs
from rkconvert.build import convert
from rkconvert.rotation.change import Change
from rkconvert.rotation.hadamard import random_hadamard
from rkconvert.rotation.options import Rotate
from rkconvert.rotation.orthogonal import Orthogonal
from rkconvert.rotation.prepare import rotation_of
from rkconvert.rotation.rotate import Rotation, rotated
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests import models
from tests.convert.test_families import difference, folder_of, logits
from tests.golden_families import cases, remote
from tests.plans import make_plan

TOLERANCE = 1e-4  # of the logits' standard deviation, as without a rotation
REFUSED = {"phi2": "LayerNorm", "gemma2": "residual stream", "gemma3": "residual stream"}
TAKEN = [name for name in cases.CASES if name not in REFUSED]


def everything(source: Source) -> dict[str, npt.NDArray[np.float32]]:
    """All tensors of a source as they are to be stored."""
    found = {}
    for name, tensor in source.tensors.items():
        with reading.opened(tensor.file) as file:
            rows = [job.make().as_float32() for job in block_jobs(source, name, file)]
        found[name] = np.concatenate(rows).reshape(tensor.shape)
    return found


# --- the matrices


@given(size=st.integers(1, 200), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_matrix_of_any_size_is_orthogonal_and_its_parts_multiply_as_all_of_it_does(size: int, seed: int) -> None:
    q = random_hadamard(size, (seed,))
    whole = q.matrix
    assert q.size == size
    assert np.abs(whole @ whole.T - np.eye(size)).max() < 1e-12
    x = np.random.default_rng(seed).normal(size=(3, 2 * size))  # twice as long: each half is turned by itself
    wanted = np.concatenate([x[:, :size] @ whole, x[:, size:] @ whole], axis=1)
    np.testing.assert_allclose(q.on_columns(x), wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(q.on_rows(x.T), wanted.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [64, 96, 128, 576, 896, 960, 1536, 2048, 2304, 2560, 3072, 3584, 4096, 5120])
def test_sizes_of_real_models_have_hadamard_matrices(size: int) -> None:
    """In which nothing is larger than the rest: what is large in one place is spread evenly over all."""
    q = random_hadamard(size, (0, 1))
    row = q.on_columns(np.eye(1, size))
    np.testing.assert_allclose(np.abs(row), size**-0.5, rtol=1e-12)
    assert max(len(factor) for factor in q.factors) <= 64 or size == 960


@pytest.mark.parametrize("size", [99991, 99992, 2 * 4099, 8 * 4409])
def test_a_size_that_no_memory_holds_is_refused(size: int, tmp_path: Path) -> None:
    """Of a small file that somebody made: 99991 is a prime, and one less than 99992."""
    with pytest.raises(UsageError, match=f"--rotate: a matrix of {size} would need one of "):
        random_hadamard(size, (0,))
    source = open_source(models.tiny_llama(tmp_path / "m"))
    wide = replace(source, config=replace(source.config, hidden=size))
    with pytest.raises(UsageError, match=f"cannot be rotated: a matrix of {size} would need one of "):
        make_plan(wide, "x", tmp_path, [quant.scheme("w8a8")], rotate="hadamard")


def test_the_same_seed_gives_the_same_matrix_and_another_another() -> None:
    """To the bit, in every version: so two people's rotated bundles of a model are one."""
    assert Rotation(random_hadamard(576, (0, 1))).digest == "a83a7d0bbf78a062"
    assert not np.array_equal(random_hadamard(64, (0, 1)).matrix, random_hadamard(64, (1, 1)).matrix)
    assert not np.array_equal(random_hadamard(64, (0, 1)).matrix, random_hadamard(64, (0, 2)).matrix)


# --- the model


@pytest.mark.parametrize("name", TAKEN)
def test_a_rotated_family_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    source, golden = open_source(folder_of(name, tmp_path / "source")), cases.load(name)
    assert difference(logits(source, tmp_path, rotate="hadamard"), golden["logits"]) < TOLERANCE


@pytest.mark.parametrize("name", remote.CASES)
def test_a_rotated_family_gives_the_logits_of_its_authors_code(name: str, tmp_path: Path) -> None:
    source = open_source(models.write_llama(tmp_path / "m", dict(remote.CASES[name]), remote.weights(name)))
    wanted = remote.logits(name, cases.ids()).astype(np.float32)
    assert difference(logits(source, tmp_path, rotate="hadamard"), wanted) < TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_whose_norms_do_not_allow_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    source = open_source(folder_of(name, tmp_path / "source"))
    with pytest.raises(UsageError, match=rf"--rotate: .*cannot be rotated: its? .*{REFUSED[name]}") as refused:
        make_plan(source, "x", tmp_path, [quant.scheme("w8a8")], rotate="hadamard")
    assert f"source ({source.family.title})" in str(refused.value)


@pytest.mark.parametrize(
    ("hidden", "heads", "kv_heads", "head_dim", "tied"),
    [(72, 3, 1, 24, True), (60, 2, 2, 30, False), (28, 4, 2, 14, True), (46, 1, 1, 10, False), (576, 9, 3, 64, True)],
)
def test_any_sizes(hidden: int, heads: int, kv_heads: int, head_dim: int, tied: bool, tmp_path: Path) -> None:
    tiny = models.Tiny(
        hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, intermediate=52, tied=tied
    )  # fmt: skip
    source = open_source(models.write_llama(tmp_path / "m", models.config(tiny, "fp32"), tiny.weights()))
    plain, turned = (logits(source, tmp_path / str(how), 20, rotate=how) for how in (None, "hadamard"))
    assert difference(turned, plain) < TOLERANCE


def test_each_part_of_it_is_needed(tmp_path: Path) -> None:
    """Without any one of the changes the model says something else: the test above would see it."""
    source = open_source(folder_of("qwen2", tmp_path / "m"))
    whole = rotated(source, rotation_of(Rotate(), source), Rotate())
    plain = logits(source, tmp_path)
    changed = {name.split(".", 2)[-1] if name.startswith("blk.") else name for name in whole.changes}
    assert changed == {
        EMBEDDING, OUTPUT, "output_norm.weight", "attn_norm.weight", "ffn_norm.weight", "attn_q.weight",
        "attn_k.weight", "attn_v.weight", "attn_v.bias", "attn_output.weight", "ffn_gate.weight", "ffn_up.weight",
        "ffn_down.weight",
    }  # fmt: skip
    for left_out in changed:
        changes = {name: c for name, c in whole.changes.items() if not f".{name}".endswith(f".{left_out}")}
        assert difference(logits(replace(whole, changes=changes), tmp_path), plain) > 10 * TOLERANCE, left_out


@pytest.mark.parametrize("part", ["residual", "heads"])
def test_either_matrix_alone(part: str, tmp_path: Path) -> None:
    source = open_source(folder_of("llama_biases", tmp_path / "m"))
    both = rotation_of(Rotate(), source)
    alone = Rotation(residual=both.residual) if part == "residual" else Rotation(heads=both.heads)
    turned = rotated(source, alone, Rotate())
    assert difference(logits(turned, tmp_path), logits(source, tmp_path)) < TOLERANCE


def test_dense_matrices_of_somebody_elses_making(tmp_path: Path) -> None:
    source = open_source(models.tiny_llama(tmp_path / "m"))
    random = np.random.default_rng(5)
    residual, *heads = (Orthogonal.dense(np.linalg.qr(random.normal(size=(n, n)))[0]) for n in (64, 16, 16))
    turned = rotated(source, Rotation(residual, tuple(heads)), Rotate())
    assert difference(logits(turned, tmp_path, 20), logits(source, tmp_path, 20)) < TOLERANCE
    with pytest.raises(CheckpointError, match="not of a model of the sizes"):
        rotated(source, Rotation(Orthogonal.dense(np.eye(32))), Rotate())
    with pytest.raises(CheckpointError, match="not of a model of the sizes"):
        rotated(source, Rotation(residual, (heads[0],)), Rotate())


@pytest.mark.parametrize("dtype", ["F16", "Q8_0"])
def test_a_gguf_file_is_turned_as_its_checkpoint_is(dtype: str, tmp_path: Path) -> None:
    """Whose rows of Q and K lie in another order, and which needs them whole to be read."""
    tiny = models.Tiny(tied=True)
    source = open_source(models.tiny_gguf(tmp_path / "m.gguf", tied=True, dtype=dtype))
    assert any(tensor.heads for tensor in source.tensors.values())
    assert difference(logits(source, tmp_path, rotate="hadamard"), logits(source, tmp_path)) < TOLERANCE
    if dtype == "F16":
        folder = open_source(models.write_llama(tmp_path / "m", models.config(tiny, "fp32"), tiny.weights()))
        here, there = (everything(rotated(one, rotation_of(Rotate(), one), Rotate())) for one in (source, folder))
        for name, values in here.items():
            np.testing.assert_allclose(values, there[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["phi3", "internlm2"])
def test_however_small_the_blocks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = cases.CASES.get(name) or remote.CASES[name]
    weights = cases.weights(name) if name in cases.CASES else remote.weights(name)
    source = open_source(models.write_llama(tmp_path / "m", dict(settings), weights, shards=2))
    turned = rotated(source, rotation_of(Rotate(), source), Rotate())
    whole = everything(turned)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1000)
    monkeypatch.setattr("rkconvert.rotation.change._CHUNK", 500)
    for tensor, values in everything(turned).items():
        np.testing.assert_allclose(values, whole[tensor], rtol=0, atol=1e-6, err_msg=tensor)


def test_a_vector_and_a_matrix_by_hand() -> None:
    """In the order that the docstring has."""
    random = np.random.default_rng(0)
    q, p, scale = random_hadamard(4, (1,)), random_hadamard(6, (2,)), random.normal(size=6)
    w, v = random.normal(size=(4, 6)), random.normal(size=4)
    found, bias = w.copy(), v.copy()
    Change(rows=q, scale=scale, columns=p).of_whole(found)
    Change(rows=q, scale=scale[:4]).of_whole(bias)
    np.testing.assert_allclose(found, q.matrix.T @ w @ np.diag(scale) @ p.matrix, atol=1e-12)
    np.testing.assert_allclose(bias, q.matrix.T @ (scale[:4] * v), atol=1e-12)


# --- the bundle


def test_the_same_call_gives_the_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    source = open_source(models.tiny_llama(tmp_path / "m", hidden=72, tied=True))
    schemes = [quant.scheme(dtype) for dtype in ("w8a8", "fp32")]
    plans = (make_plan(source, "t", tmp_path / str(n), schemes, threads=n, rotate="hadamard") for n in (1, 3))
    one, three = ([(folder / "model.sim.gguf").read_bytes() for folder in convert(plan)] for plan in plans)
    assert one == three


def test_the_manifest_says_how_and_the_name_says_that(tmp_path: Path) -> None:
    source = open_source(models.tiny_llama(tmp_path / "m", tied=True))
    plan = make_plan(source, "tiny", tmp_path / "out", [quant.scheme("w8a8")], rotate="hadamard", hybrid_rate=0.5)
    (folder,) = convert(plan)
    manifest = bundle.read(folder).manifest
    assert folder.name == "tiny-rk3588-w8a8-hybrid0.5-rotated"
    basis = manifest["rotation"].pop("basis")
    assert manifest["rotation"] == {"kind": "hadamard", "seed": 0, "matrices": ["R1", "R2"]}
    assert basis == f"hadamard-{rotation_of(Rotate(), source).digest}"
    assert manifest["model"]["tied"] is False
    assert manifest["source"]["files"][0]["path"] == "model.safetensors"
    plain = convert(make_plan(source, "tiny", tmp_path / "out", [quant.scheme("w8a8")]))
    assert "rotation" not in bundle.read(plain[0]).manifest
