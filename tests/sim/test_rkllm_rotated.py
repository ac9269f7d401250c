"""A rotated model behind RKLLM's interface: what goes in and comes out in another basis is refused, or told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from rk3588 import quant
from rk3588.errors import SimError
from rk3588.hostlib import SimModel
from rkconvert.adapters import in_bundle, lora
from rkconvert.build import convert
from rkconvert.rotation.options import Rotate
from rkconvert.rotation.prepare import prepared, rotation_of
from rkconvert.rotation.rotate import rotated
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests import loras, models
from tests.convert.test_families import folder_of
from tests.golden_families import cases
from tests.plans import make_plan
from tests.rkllm_driver import FINISH, HIDDEN, Driver
from tests.sim.test_rkllm_refusals import errors
from tests.twins import Twin

GREEDY = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=8")
IDS = [5, 17, 300, 2]
TOKENS = f"tokens:{','.join(map(str, IDS))}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(models.tiny_llama(tmp_path_factory.mktemp("rotated") / "m"))


@pytest.fixture(scope="module")
def model(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(source, tmp_path_factory.mktemp("bundles"), "hadamard")


def made(source: Source, out: Path, rotate: str | None, *adapters: lora.Lora) -> Path:
    schemes = [quant.scheme("fp32")]
    (folder,) = convert(make_plan(source, "tiny", out, schemes, rotate=rotate, loras=adapters))
    return folder / "model.sim.gguf"


def test_it_says_what_the_original_says(driver: Driver, model: Path, source: Source, tmp_path: Path) -> None:
    plain = made(source, tmp_path, None)
    found, wanted = (driver(*GREEDY, f"init:{one}", TOKENS, "run") for one in (model, plain))
    assert len(found.tokens()) == 8 and found.tokens() == wanted.tokens()


def test_hidden_states_are_in_its_own_basis_and_the_log_says_so(
    driver: Driver, model: Path, source: Source, tmp_path: Path
) -> None:
    plain = made(source, tmp_path, None)
    found, wanted = (driver(f"init:{one}", "mode:1", TOKENS, "run") for one in (model, plain))
    assert found.states() == [HIDDEN, FINISH]
    turned = rotated(source, rotation_of(Rotate(), source), Rotate())
    residual = rotation_of(Rotate(), source).residual
    gains = turned.changes["output.weight"].scale
    assert residual is not None and gains is not None
    np.testing.assert_allclose(found.hidden() @ residual.matrix.T * gains, wanted.hidden(), atol=1e-4)
    told = f"W rkllm: this model is rotated ({turned.config.rotation}): its hidden states are in another basis"
    assert told in found.log and "rotated" not in wanted.log


def test_embeddings_of_the_original_are_refused(driver: Driver, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(64 * 4))
    done = driver(*GREEDY, f"init:{model}", f"embed:1,{path}", "run", f"image:1,{path}", "image_prompt:a<image>", "run",
                  TOKENS, "run")  # fmt: skip
    assert done.returned("run") == [-1, -1, 0] and done.calls(1) == done.calls(2) == []
    one, two = errors(done.log)
    assert one.startswith("rkllm_run: RKLLM_INPUT_EMBED: this model is rotated (hadamard-")
    assert two.startswith("rkllm_run: RKLLM_INPUT_MULTIMODAL: this model is rotated") and "without --rotate" in two


def test_embeddings_of_a_callback_are_refused_when_the_model_is_loaded(
    twins: Callable[[str], Twin], model: Path
) -> None:
    done = twins("1.3.1")("embedder:9", f"init:{model}")
    assert done.returned("init") == [-1] and "rkllm_init: embed_callback: this model is rotated" in done.log


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_kept_adapter_is_turned_with_its_model(family: str, source: Source, tmp_path: Path) -> None:
    """To the same logits as beside the original; at another's side it is refused, either way."""
    if family == "phi3":
        source = open_source(folder_of("phi3", tmp_path / "m"))
        tensors = {n: t for n, t in cases.weights("phi3").items() if "qkv" in n or "gate_up" in n or "down" in n}
        folder = _fused_adapter(tmp_path / "a", {name: value.shape for name, value in tensors.items()})
    else:
        folder = loras.peft_lora(tmp_path / "a", models.Tiny(), use_rslora=True)
    adapter = lora.read(lora.LoraOption(folder, "mine", 1.0), source)
    turned, plain = (made(source, tmp_path / str(how), how, adapter) for how in ("hadamard", None))
    files = {one: one.parent / "lora" / "mine.gguf" for one in (turned, plain)}
    with SimModel(turned) as one, SimModel(plain) as other:
        without = other.logits(IDS)
        one.use_lora(files[turned], 0.7)
        other.use_lora(files[plain], 0.7)
        found, wanted = one.logits(IDS), other.logits(IDS)
        assert np.abs(wanted - without).max() > 0.3
        np.testing.assert_allclose(found, wanted, atol=1e-3 * wanted.std())
        with pytest.raises(SimError, match=r"mine\.gguf is for a model that is not rotated, and this one is rotated"):
            one.use_lora(files[plain])
        with pytest.raises(SimError, match=r"is for a model that is rotated \(hadamard-\w+\), and this one is not"):
            other.use_lora(files[turned])


def _fused_adapter(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A LoRA of rank 2 of layers with these shapes."""
    tensors = {}
    for name, (n, k) in shapes.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = cases.weight(f"{name}.a", (2, k), False)
        tensors[f"{module}.lora_B.weight"] = cases.weight(f"{name}.b", (n, 2), False)
    folder.mkdir()
    settings = loras.settings(2, 4, ["qkv_proj", "gate_up_proj", "down_proj"])
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    models.write_safetensors(folder / "adapter_model.safetensors", tensors, "fp32")
    return folder


def test_a_merged_adapter_is_added_before_the_model_is_turned(source: Source, tmp_path: Path) -> None:
    folder = loras.peft_lora(tmp_path / "a", models.Tiny())
    adapter = lora.read(lora.LoraOption(folder, "mine", 0.7), source)
    schemes = [quant.scheme("fp32")]
    plans = (
        make_plan(source, "t", tmp_path / str(how), schemes, rotate=how, loras=[adapter], lora_mode="merge")
        for how in ("hadamard", None)
    )
    found, wanted = (SimModel(convert(plan)[0] / "model.sim.gguf").logits(IDS) for plan in plans)
    np.testing.assert_allclose(found, wanted, atol=1e-3 * wanted.std())


def test_an_adapter_names_the_basis_that_it_is_for(source: Source, tmp_path: Path) -> None:
    folder = loras.peft_lora(tmp_path / "a", models.Tiny())
    adapter = lora.read(lora.LoraOption(folder, "mine", 1.0), source)
    plan = make_plan(source, "t", tmp_path, [quant.scheme("w8a8")], rotate="hadamard", loras=[adapter])
    ready = prepared(replace(plan, overwrite=True))
    in_bundle.write_gguf(ready.loras[0], ready.sim_source.config, tmp_path / "a.gguf")
    said = gguf.GGUFReader(tmp_path / "a.gguf").fields["rksim.rotation"].contents()
    assert said == ready.rotation["basis"]
