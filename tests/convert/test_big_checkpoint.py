"""A checkpoint in the shape of Qwen3-8B is converted in little memory, however large it is."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rk3588 import bundle, families
from rkconvert.architectures import config_json
from rkconvert.architectures.names import Names
from tests.bench.make_checkpoint import Weights, shards, write_shard, write_tokenizer

MOST_BYTES = 1_500_000_000  # of memory
QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rope_theta": 1000000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def written(folder: Path, settings: dict[str, Any]) -> Path:
    """Random weights as bf16, in shards."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    write_tokenizer(folder, settings["vocab_size"])
    config = config_json.read_config(settings, "config.json")
    family = families.of_class(settings["architectures"][0])
    assert family is not None
    names = Names(family, config)
    weights, index = Weights(), {}
    for number, part in enumerate(shards({names.in_file(n): shape for n, shape in config.tensors().items()}), 1):
        file = f"model-{number:05}.safetensors"
        write_shard(folder / file, part, weights)
        index.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def needed(settings: dict[str, Any]) -> int:
    """Bytes of disk: two of each weight, then one, or two of the embedding."""
    tensors = config_json.read_config(settings, "config.json").tensors().values()
    embedding: int = settings["hidden_size"] * settings["vocab_size"]
    return int(3.1 * sum(map(math.prod, tensors))) + 2 * embedding


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 36])
def test_eight_billion_weights_in_a_gigabyte_and_a_half(tmp_path: Path, layers: int) -> None:
    settings = {**QWEN3_8B, "num_hidden_layers": layers}
    free, wanted = shutil.disk_usage(tmp_path).free / 1e9, needed(settings) / 1e9 + 1  # one stays free
    if free < wanted:
        pytest.skip(f"{tmp_path} has {free:.1f} GB free, and {wanted:.1f} GB are needed")
    source, out = tmp_path / "source", tmp_path / "out"
    try:
        program = "from rkconvert.cli import main; main()"
        command = [sys.executable, "-c", program, str(written(source, settings)), "-o", str(out), "--name", "big"]
        with subprocess.Popen([*command, "--dtype", "w8a8"], stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        made = bundle.read(out / "big-rk3588-w8a8")
        tensors = config_json.read_config(settings, "config.json").tensors().values()
        assert made.manifest["model"]["parameters"] == sum(map(math.prod, tensors))
        print(f"{layers} layers: {usage.ru_maxrss / 1e6:.2f} GB of memory", file=sys.stderr)
        assert usage.ru_maxrss * 1024 <= MOST_BYTES
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
