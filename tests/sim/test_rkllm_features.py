"""Models of many features through the C ABI: hidden states, images, prompt caches, adapters, a full context.

What they compute is compared with the NumPy reference, to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from rk3588 import hostlib
from rk3588.errors import SimError
from tests.artifacts import LINEAR, Model
from tests.reference import Floats, Reference
from tests.rkllm_driver import HIDDEN, Driver
from tests.sim.test_numerics_features import CASES, ids, logits

GREEDY = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=8")
ALL = CASES["all"]


def tokens(given: Sequence[int]) -> str:
    return "tokens:" + ",".join(map(str, given))


def floats(path: Path, values: Floats) -> Path:
    path.write_bytes(np.ascontiguousarray(values, np.float32).tobytes())
    return path


@pytest.mark.parametrize("dtype", ["w8a8_g128", "fp32"])
def test_embeddings_are_scaled_once(driver: Driver, tmp_path: Path, dtype: str) -> None:
    """Those of text by the runtime, those that are given and those of images by nobody."""
    path = ALL.write(tmp_path / "m.gguf", dtype)
    reference = Reference(path, context=64)
    image = [70, 3, 99]
    spliced = [2, 0, *image, 1, 0, 1]  # "ab", img_start, the image, img_end, "ab" without a merge
    scaled = reference.embed(spliced)
    raw = reference.tensors["token_embd.weight"][image].astype(np.float32)
    wanted = reference.hidden(scaled)
    unscaled = scaled.copy()
    unscaled[2:5] = raw
    frame = ("set:img_start=a", "set:img_content=t9", "set:img_end=b")
    pictures = [floats(tmp_path / "image", scaled[2:5]), floats(tmp_path / "raw", raw)]
    shown = [[f"image:3,{picture}", "image_prompt:ab<image>a", "run"] for picture in pictures]
    embedded = f"embed:{len(spliced)},{floats(tmp_path / 'all', scaled)}"
    done = driver(
        *frame, "set:max_context_len=64", f"init:{path}", "mode:1", tokens(spliced), "run", embedded, "run",
        *shown[0], *shown[1],
    )  # fmt: skip
    np.testing.assert_array_equal(done.hidden(1), wanted)
    np.testing.assert_array_equal(done.hidden(2), wanted)
    np.testing.assert_array_equal(done.hidden(3), reference.hidden(reference.embed([2, 0, *image, 1, 0])))
    np.testing.assert_array_equal(done.hidden(4), reference.hidden(unscaled[:7]))
    assert not np.array_equal(done.hidden(3), done.hidden(4)) and done.states(4)[0] == HIDDEN


def test_prompt_caches_know_all_features(driver: Driver, tmp_path: Path) -> None:
    """What a cache began ends in the same keys and values as what was computed."""
    for dtype in ("w8a8", "fp32"):
        path = ALL.write(tmp_path / f"{dtype}.gguf", dtype)
        first, again, alone = (tmp_path / f"{name}-{dtype}" for name in ("first", "again", "alone"))
        prompt, other = ids(150), [*ids(100), 7, *ids(150)[101:]]
        init = (*GREEDY, f"init:{path}", "save_cache:1")
        plain = driver(*init, f"cache:{first}", tokens(prompt), "run", f"cache:{alone}", tokens(other), "run")
        done = driver(*init, f"cache:{first}", "load_prompt_cache", f"cache:{again}", tokens(other), "run")
        assert re.findall(r"prompt cache: (\d+) of", done.log) == ["100"]
        assert done.tokens() == plain.tokens(2) and len(done.tokens()) == 8
        assert again.read_bytes() == alone.read_bytes() != first.read_bytes()


def test_a_cache_of_other_rope_factors_is_refused(driver: Driver, tmp_path: Path) -> None:
    """LongRoPE's are chosen by the context: keys of a long one would be wrong in a short one."""
    path, cache = CASES["long factors"].write(tmp_path / "m.gguf"), tmp_path / "cache"
    for size, other, known in ((64, 30, False), (30, 64, False), (64, 512, True), (30, 29, True)):
        save = [f"set:max_context_len={size}", f"init:{path}", f"cache:{cache}", "save_cache:1", tokens(ids(20)), "run"]
        load = [f"set:max_context_len={other}", f"init:{path}", f"cache:{cache}", "load_prompt_cache", tokens(ids(20))]
        assert driver(*GREEDY, *save).returned("run") == [0]
        done = driver(*GREEDY, *load, "run")
        assert done.returned("load_prompt_cache") == [0 if known else -1]
        assert ("saved with another max_context_len" in done.log) == (not known)
        plain = driver(*GREEDY, *load[:2], tokens(ids(20)), "run")
        assert done.tokens() == plain.tokens()


@pytest.mark.parametrize("dtype", ["w8a8", "fp32"])
def test_windows_in_a_context_that_is_full(driver: Driver, tmp_path: Path, dtype: str) -> None:
    """Where no block looks back further than the context is long, what was dropped from it was seen by none."""
    model = replace(ALL, long_factors=False, keys={**ALL.keys, "attention.sliding_window": (9, 14, 1)}, layers=3)
    path = model.write(tmp_path / "m", dtype)
    options = ("set:top_k=1", "set:repeat_penalty=1.5", "set:max_new_tokens=90")  # else it soon says the same for ever
    contexts = [
        [*options, f"set:max_context_len={n}", f"init:{path}", tokens(ids(11)), "run"] for n in (15, 16, 23, 400)
    ]
    fed = ids(11)
    with hostlib.SimModel(path, threads=1) as one:
        for _ in range(90):
            scores, seen = one.logits(fed)[-1], list(set(fed[-64:]))
            scores[seen] = np.where(scores[seen] > 0, scores[seen] / np.float32(1.5), scores[seen] * np.float32(1.5))
            fed.append(int(scores.argmax()))
    assert len(set(fed[11:])) > 20
    assert [driver(*context).tokens() for context in contexts] == [fed[11:]] * 4


def test_a_context_that_no_memory_holds(driver: Driver, tmp_path: Path) -> None:
    path = Model(hidden=2, intermediate=2, heads=1024, kv_heads=1024, head_dim=16, vocab=9).write(tmp_path / "m.gguf")
    done = driver(f"set:max_context_len={2**31 - 1}", f"init:{path}")
    assert done.returned("init") == [-1]
    assert "no memory for the keys and values of 2147483647 positions: lower max_context_len" in done.log


def adapter(path: Path, model: Model, family: str = "tiny", rank: int = 3) -> Path:
    """A LoRA of every linear layer of ``model``, as llama.cpp writes one."""
    writer = gguf.GGUFWriter(path, family)
    for key, value in (("general.type", "adapter"), ("adapter.type", "lora")):
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", 5.0)
    rng = np.random.default_rng(1)
    for name, weight in model.weights().items():
        if weight.ndim == 2 and name != "token_embd.weight":
            n, k = weight.shape
            writer.add_tensor(f"{name}.lora_a", rng.standard_normal((rank, k), np.float32) * np.float32(0.2))
            writer.add_tensor(f"{name}.lora_b", rng.standard_normal((n, rank), np.float32) * np.float32(0.2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("interleaved", [True, False])
def test_adapters_of_any_family(tmp_path: Path, interleaved: bool) -> None:
    """Their rows of Q and K as this file's, or as llama.cpp has some families'; beside biases and all else."""
    for name in ("all", "all in parallel"):
        model = replace(CASES[name], keys={**CASES[name].keys, "adapters_interleaved": interleaved})
        file = adapter(tmp_path / f"{name}.lora", model)
        for dtype in ("w8a8_g128", "fp32"):
            path = model.write(tmp_path / f"{name}-{dtype}", dtype)
            reference = Reference(path)
            reference.use_lora(file, 0.7)
            wanted, plain = reference.logits(ids(39)), logits(path, ids(39))
            with hostlib.SimModel(path, threads=2) as one:
                one.use_lora(file, 0.7)
                for chunk in (0, 1, 7):
                    np.testing.assert_array_equal(one.logits(ids(39), chunk=chunk), wanted)
            reference.interleaved = not interleaved
            reference.use_lora(file, 0.7)
            assert np.abs(wanted - plain).max() > 0.1 and np.abs(reference.logits(ids(39)) - wanted).max() > 0.01


def test_an_adapter_of_another_family_is_refused(tmp_path: Path) -> None:
    path = ALL.write(tmp_path / "m.gguf")
    sentence = r"general\.architecture is 'llama', expected 'tiny'"
    with hostlib.SimModel(path) as one, pytest.raises(SimError, match=sentence):
        one.use_lora(adapter(tmp_path / "a.gguf", ALL, "llama"))
    with (
        hostlib.SimModel(path) as one,
        pytest.raises(SimError, match=r"blk\.0\.ffn_gate\.weight, which is no linear layer"),
    ):
        ungated = replace(ALL, gated=False, biases=tuple(b for b in LINEAR if b != "ffn_gate"))
        with hostlib.SimModel(ungated.write(tmp_path / "n.gguf")) as other:
            other.use_lora(adapter(tmp_path / "b.gguf", ALL))
