"""Adapters and every command of the converter, for each family: nothing works for Llama alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from rk3588 import bundle, hostlib, quant, shape
from rk3588.commands.predict import command as predict_command
from rk3588.errors import CheckpointError
from rkconvert.adapters import lora, merge
from rkconvert.build import convert
from rkconvert.cli import cli
from rkconvert.sources.opening import open_source
from tests import loras, models
from tests.convert.test_families import TOLERANCE, difference, logits
from tests.golden_families import cases, remote
from tests.plans import make_plan

SETTINGS: Mapping[str, Mapping[str, Any]] = {**cases.CASES, **remote.CASES}
RANK, ALPHA = 4, 8
# One of each kind in the short run: the others differ in what other tests look at.
_SHORT = ("llama_biases", "qwen2", "phi3", "phi2", "gemma3", "internlm2_dynamic", "minicpm4")
CASES = [pytest.param(name, marks=() if name in _SHORT else pytest.mark.slow) for name in SETTINGS]
Weights = dict[str, npt.NDArray[np.float32]]


def weights(name: str) -> Weights:
    return remote.weights(name) if name in remote.CASES else cases.weights(name)


def adapter(folder: Path, base: Weights) -> Weights:
    """An adapter of every linear layer as the checkpoint has it, fused or not; what it adds, by the weights' names."""
    halves: Weights = {}
    added: Weights = {}
    for name, weight in base.items():
        if weight.ndim != 2 or "embed" in name:
            continue
        random = np.random.default_rng(zlib.crc32(name.encode()))
        a = random.standard_normal((RANK, weight.shape[1])) / np.sqrt(weight.shape[1])
        b = random.standard_normal((weight.shape[0], RANK)) / RANK
        module = f"base_model.model.{name.removesuffix('.weight')}"
        halves |= {f"{module}.lora_A.weight": np.float32(a), f"{module}.lora_B.weight": np.float32(b)}
        added[name] = np.float32(ALPHA / RANK * (b @ a))
    folder.mkdir()
    targets = sorted({name.rsplit(".", 1)[0].rsplit(".", 1)[-1] for name in added})
    (folder / "adapter_config.json").write_text(json.dumps(loras.settings(RANK, ALPHA, targets)))
    models.write_safetensors(folder / "adapter_model.safetensors", halves, "fp32")
    return added


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_of_every_layer(name: str, tmp_path: Path) -> None:
    """Merged, kept beside the base, and merged into the checkpoint for rkllm-toolkit: the same answers."""
    base = weights(name)
    added = adapter(tmp_path / "a", base)
    source = open_source(models.write_llama(tmp_path / "base", dict(SETTINGS[name]), base))
    whole = {key: value + added[key] if key in added else value for key, value in base.items()}
    wanted = logits(open_source(models.write_llama(tmp_path / "whole", dict(SETTINGS[name]), whole)), tmp_path)
    plain = logits(source, tmp_path)
    assert difference(plain, wanted) > 0.05

    read = lora.read(lora.LoraOption(tmp_path / "a", "a", 1.0), source)
    fp32 = [quant.scheme("fp32")]
    (merged,) = convert(make_plan(source, "m", tmp_path, fp32, threads=1, loras=[read], lora_mode="merge"))
    with hostlib.SimModel(merged / bundle.SIM_MODEL) as model:
        assert difference(model.logits(cases.ids()), wanted) < TOLERANCE
    (kept,) = convert(make_plan(source, "k", tmp_path, fp32, threads=1, loras=[read]))
    with hostlib.SimModel(kept / bundle.SIM_MODEL) as model:
        assert np.array_equal(model.logits(cases.ids()), plain)
        model.use_lora(kept / "lora" / "a.gguf")
        assert difference(model.logits(cases.ids()), wanted) < TOLERANCE
    board = merge.write_checkpoint(source, [read], tmp_path / "board", lambda: None)
    assert difference(logits(open_source(board), tmp_path), wanted) < TOLERANCE


def test_half_an_adapter_of_fused_layers_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    base = weights("phi3")
    adapter(tmp_path / "a", {name: w for name, w in base.items() if "layers.1.self_attn.qkv_proj" not in name})
    source = open_source(models.write_llama(tmp_path / "base", dict(SETTINGS["phi3"]), base))
    with pytest.raises(CheckpointError, match=r"has nothing for model.layers.1.self_attn.qkv_proj, which"):
        lora.read(lora.LoraOption(tmp_path / "a", "a", 1.0), source)


def test_a_missing_fused_layer_is_named(tmp_path: Path) -> None:
    base = {name: w for name, w in weights("phi3").items() if "layers.1.mlp.gate_up_proj" not in name}
    with pytest.raises(CheckpointError, match=r"lacks the tensor model.layers.1.mlp.gate_up_proj.weight"):
        open_source(models.write_llama(tmp_path / "base", dict(SETTINGS["phi3"]), base))


def run(command: click.Command, *arguments: object) -> str:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", CASES)
def test_every_command(name: str, tmp_path: Path) -> None:
    """Dry run, hybrid rate, accuracy, card and prediction."""
    folder = models.write_llama(tmp_path / "Tiny", dict(SETTINGS[name]), weights(name))
    options = ["--dtype=w8a8", "--hybrid-rate=0.5", "-o", tmp_path / "out"]
    told = json.loads(run(cli, folder, *options, "--dry-run", "--json"))
    assert not (tmp_path / "out").exists() and told["model"]["layers"] == SETTINGS[name]["num_hidden_layers"]
    run(cli, folder, *options)
    run(cli, folder, "--dtype=fp32", "-o", tmp_path / "out")
    made = tmp_path / "out" / "Tiny-rk3588-w8a8-hybrid0.5"
    (tmp_path / "read.txt").write_text("The quick brown fox jumps over the lazy dog. " * 5)
    (row,) = json.loads(run(cli, "accuracy", made, "--text", tmp_path / "read.txt", "--tokens", 60, "--json"))
    assert 0 < row["divergence"] < 1 and row["agreement"] > 0.5
    assert "perplexity" in (made / "README.md").read_text()

    source = open_source(folder)
    assert source.shape is not None
    parameters = sum(int(np.prod(tensor.shape)) for tensor in source.tensors.values())
    found = [shape.load(folder), shape.load(made), source.shape]
    assert found[0].total_params == found[2].total_params == parameters
    assert len({(one.linear_params, one.lm_head_params, one.kv_bytes_per_token) for one in found}) == 1
    assert told["model"]["parameters"] == parameters
    (predicted,) = json.loads(run(predict_command, made, "--board=rock-5b", "--ram=8", "--prompt=16", "--json"))
    assert predicted["decode_tok_s"]["value"] > 0
