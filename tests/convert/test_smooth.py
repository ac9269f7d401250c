"""What models read on calibration texts, and `--smooth`, which moves its outliers into weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rk3588 import hostlib, quant
from rkconvert.build import convert
from rkconvert.rotation import forward
from rkconvert.rotation.options import Smooth
from rkconvert.rotation.prepare import prepared
from rkconvert.rotation.smooth import smoothed
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests import models
from tests.convert.test_families import TOLERANCE, difference, folder_of, logits
from tests.golden_families import cases, remote
from tests.plans import make_plan


def head_logits(source: Source, windows: list[list[int]]) -> forward.Floats:
    """Of every position of all windows, by way of ``forward``."""
    *_, last = forward.run(source, windows)
    (weight,), config = last.weights, source.config
    y = last.x @ weight.T
    if "output.bias" in config.tensors():
        y = y + forward.stored(source, "output.bias")
    y = y * np.float32(config.logit_scale)
    cap = config.logit_soft_cap
    capped: forward.Floats = np.tanh(y / np.float32(cap)) * np.float32(cap) if cap else y
    return capped


@pytest.mark.parametrize("name", cases.CASES)
def test_what_is_read_is_what_transformers_reads(name: str, tmp_path: Path) -> None:
    """Else the logits at the end were others. A window is read as if there were no other."""
    source, golden = open_source(folder_of(name, tmp_path)), cases.load(name)
    ids = cases.ids(cases.TOKENS)
    assert difference(head_logits(source, [ids]), golden["logits"]) < TOLERANCE
    if "short" not in golden:  # LongRoPE's factors are those of the longest window
        found = head_logits(source, [ids[:7], ids, ids[:1]])
        assert difference(found[7:-1], golden["logits"]) < TOLERANCE
        assert difference(found[:7], golden["logits"][:7]) < TOLERANCE


@pytest.mark.parametrize("name", remote.CASES)
def test_what_is_read_is_what_the_authors_code_reads(name: str, tmp_path: Path) -> None:
    source = open_source(models.write_llama(tmp_path / "m", dict(remote.CASES[name]), remote.weights(name)))
    wanted = remote.logits(name, cases.ids()).astype(np.float32)
    assert difference(head_logits(source, [cases.ids()]), wanted) < TOLERANCE


# --- smoothing


def smooth_logits(source: Source, folder: Path, rotate: str | None = None, dtype: str = "fp32") -> forward.Floats:
    (bundle,) = convert(make_plan(source, "tiny", folder, [quant.scheme(dtype)], rotate=rotate, smooth="0.5"))
    with hostlib.SimModel(bundle / "model.sim.gguf") as model:
        return model.logits(cases.ids())


@pytest.mark.parametrize("name", cases.CASES)
def test_a_smoothed_family_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    """LayerNorm, norms behind layers, gains of 1 + weight, MLPs without a gate, one norm for both, fused layers."""
    source, golden = open_source(folder_of(name, tmp_path / "source")), cases.load(name)
    plan = prepared(make_plan(source, "tiny", tmp_path, [quant.scheme("fp32")], smooth="0.5"))
    for i in range(source.config.layers):
        wanted = {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_up"}
        wanted |= {"ffn_gate", "ffn_down"} if source.config.gated else set()
        wanted |= set() if source.config.parallel else {"ffn_norm"}
        assert {n.split(".")[2] for n in plan.sim_source.changes if n.startswith(f"blk.{i}.")} == wanted
    assert difference(smooth_logits(source, tmp_path), golden["logits"]) < TOLERANCE


@pytest.mark.parametrize("name", ["qwen2", "gemma", "phi3", "llama_biases"])
def test_smoothed_and_rotated(name: str, tmp_path: Path) -> None:
    source, golden = open_source(folder_of(name, tmp_path / "source")), cases.load(name)
    plan = make_plan(source, "tiny", tmp_path, [quant.scheme("fp32")], rotate="hadamard", smooth="0.5")
    scaled = {n.split(".")[2] for n, c in prepared(plan).sim_source.changes.items() if c.row_scale is not None}
    assert scaled == {"ffn_up"}
    assert difference(smooth_logits(source, tmp_path, "hadamard"), golden["logits"]) < TOLERANCE


def with_outliers(folder: Path) -> Source:
    """A Llama some of whose channels are fifty times the others, in each place that can be smoothed, and who computes
    what it did without: what smoothing is to find."""
    tiny = models.Tiny(tied=True)
    weights = tiny.weights()
    for name, tensor in weights.items():
        if name.endswith("layernorm.weight"):
            tensor[3] *= 50
        elif name.endswith(("q_proj.weight", "k_proj.weight", "gate_proj.weight")):
            tensor[:, 3] /= 50
        elif name.endswith("v_proj.weight"):
            tensor[:, 3] /= 50
            tensor[5] *= 50
        elif name.endswith("up_proj.weight"):
            tensor[:, 3] /= 50
            tensor[7] *= 50
        elif name.endswith("o_proj.weight"):
            shared = tiny.heads // tiny.kv_heads
            tensor[:, [5 + i * tiny.head_dim for i in range(shared)]] /= 50
        elif name.endswith("down_proj.weight"):
            tensor[:, 7] /= 50
    return open_source(models.write_llama(folder, models.config(tiny, "fp32"), weights))


def test_outliers_no_longer_cost_anything(tmp_path: Path) -> None:
    """int8 of the model with outliers, smoothed, is as near fp32 as that of one without."""
    source = with_outliers(tmp_path / "m")
    exact = logits(source, tmp_path / "fp32")
    plain = difference(logits(source, tmp_path / "plain", dtype="w8a8"), exact)
    smooth = difference(smooth_logits(source, tmp_path / "smooth", dtype="w8a8"), exact)
    assert smooth < plain / 3


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_by_hand(alpha: float, tmp_path: Path) -> None:
    """Between up and down: with 1 every channel is as large as any other, with 0 all weights are."""
    source = with_outliers(tmp_path / "m")
    windows = [cases.ids()]
    found = smoothed(source, Smooth(alpha), windows)
    for before, after in zip(forward.run(source, windows), forward.run(found, windows), strict=True):
        if before.readers == ("blk.0.ffn_down.weight",):
            x, w = np.abs(before.x).max(0), np.abs(before.weights[0]).max(0)
            s = x**alpha / w ** (1 - alpha)
            s /= np.exp(np.log(s).mean())
            np.testing.assert_allclose(np.abs(after.x).max(0), x / s, rtol=1e-4)
            np.testing.assert_allclose(np.abs(after.weights[0]).max(0), w * s, rtol=1e-4)
            return
    raise AssertionError("down was not read")


def test_channels_of_nothing_stay(tmp_path: Path) -> None:
    tiny = models.Tiny(tied=True)
    weights = tiny.weights()
    for name, tensor in weights.items():
        if name.endswith("up_proj.weight"):
            tensor[:4] = 0
        if name.endswith("down_proj.weight"):
            tensor[:, 3:8] = 0
        if name.endswith("v_proj.weight"):
            tensor[:] = 0
    source = open_source(models.write_llama(tmp_path / "m", models.config(tiny, "fp32"), weights))
    changes = smoothed(source, Smooth(), [cases.ids()]).changes
    factors = changes["blk.1.ffn_down.weight"].scale
    assert factors is not None and (factors[:8] == 1).all() and (factors[8:] != 1).any()
    np.testing.assert_array_equal(changes["blk.0.attn_output.weight"].scale, 1)
    assert difference(smooth_logits(source, tmp_path), logits(source, tmp_path)) < TOLERANCE
