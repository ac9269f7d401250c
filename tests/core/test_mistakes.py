"""Mistakes that rkllm-toolkit would tell late or never: each is refused at once, with what is wrong named."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from rkconvert import memory
from rkconvert.sources.base import Checkpoint
from rkconvert.sources.opening import open_checkpoint
from rkconvert.toolkit import preflight, releases
from tests import loras, models
from tests.toolkit_double import Installed, environment, rkconvert

RELEASE = releases.of("1.1.1")

BOARD = ["--target", "rk3588"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the mistakes are made with."""
    folder = tmp_path_factory.mktemp("mistakes")
    wide: dict[str, Any] = {"hidden": 128, "heads": 2, "kv_heads": 2, "head_dim": 64, "intermediate": 320}
    model = models.tiny_llama(folder / "model", **wide)
    _variant(model, folder / "qwen3", architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    _variant(model, folder / "falcon", architectures=["FalconForCausalLM"], model_type="falcon")
    _variant(model, folder / "awq", quantization_config={"quant_method": "awq"})
    untold = _variant(model, folder / "untold")
    (untold / "tokenizer.json").unlink()
    (_variant(model, folder / "cut") / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    models.tiny_gguf(folder / "ggufs" / "m.Q8_0.gguf", dtype="Q8_0", **wide)
    loras.peft_lora(folder / "lora", models.Tiny(hidden=64))
    (folder / "object.json").write_text('{"input": "a", "target": "b"}')
    (folder / "entry.json").write_text('[{"input": "a", "target": "b"}, {"input": "a"}]')
    (folder / "broken.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": \n')
    (folder / "empty.txt").write_text("\n\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "done.rkllm").write_bytes(b"RKLLM")
    return folder


def _variant(model: Path, folder: Path, **settings: object) -> Path:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


MISTAKES = {
    "an RK3576's dtype": (["model", "--dtype", "w4a16_g128"], 2, "--dtype w4a16_g128 is the RK3576's: an RK"),
    "a float dtype": (["model", "--dtype", "fp16"], 2, "--dtype fp16 cannot be built for a board: an RK3588"),
    "a group that does not divide K": (
        ["model", "--dtype", "w8a8_g128"],
        1,
        "model.safetensors: layer model.layers.0.mlp.down_proj.weight has 320 inputs, which groups of 128 do not "
        "divide, as rkllm-toolkit wants them to: take --dtype w8a8; --force tries it all the same",
    ),
    "no cores": (["model", "--npu-cores", "0"], 2, "--npu-cores 0: an RK3588 has 3, give 1, 2 or 3"),
    "four cores": (["model", "--npu-cores", "4"], 2, "--npu-cores 4: an RK3588 has 3, give 1, 2 or 3"),
    "a hybrid rate of 1": (["model", "--hybrid-rate", "1"], 2, "--hybrid-rate 1: it is a share of the layers"),
    "a negative hybrid rate": (["model", "--hybrid-rate=-0.1"], 2, "--hybrid-rate -0.1: it is a share of the layers"),
    "an optimisation level of 2": (["model", "--optimization-level", "2"], 2, "--optimization-level 2: rkllm-"),
    "a 4-bit algorithm": (["model", "--algorithm", "gdq"], 2, "--algorithm gdq is for 4-bit weights"),
    "no GPU": (["model", "--device", "cuda"], 2, "--device cuda: this machine has no NVIDIA driver"),
    "no extra parameters": (["model", "--extra-qparams", "no.npy"], 2, "--extra-qparams no.npy is not a file"),
    "an architecture of later": (
        ["qwen3"], 1, "qwen3/config.json: Qwen3ForCausalLM: rkllm-toolkit takes Qwen3 from 1.2.1 on, and this is 1.1.1",
    ),
    "an architecture that it does not know": (
        ["falcon"], 1, "falcon/config.json: FalconForCausalLM is not among the architectures of rkllm-toolkit 1.1.1",
    ),
    "a quantised checkpoint": (["awq"], 1, "awq/config.json: the model is quantised already (awq)"),
    "no tokenizer": (["untold"], 1, "untold has no tokenizer.json and no tokenizer.model"),
    "a truncated file": (["cut"], 1, "cut/model.safetensors is truncated: tensor"),
    "a GGUF type": (["ggufs/m.Q8_0.gguf"], 2, "m.Q8_0.gguf: tensor blk.0.attn_q.weight has type Q8_0, and rkllm"),
    "a folder of GGUF files": (["ggufs"], 2, "ggufs is a folder with GGUF files: give one of them: m.Q8_0.gguf"),
    "a .rkllm": (["done.rkllm"], 2, "done.rkllm is a .rkllm, which is converted already"),
    "a dataset that is no list": (["model", "--dataset", "object.json"], 2, "--dataset object.json holds a dict,"),
    "a sample without its answer": (
        ["model", "--dataset", "entry.json"], 2, "--dataset entry.json, entry 2: 'target' is missing, empty or",
    ),
    "a broken line": (["model", "--dataset", "broken.jsonl"], 2, "--dataset broken.jsonl, line 2 is not JSON"),
    "an empty dataset": (["model", "--dataset", "empty.txt"], 2, "--dataset empty.txt holds no sample"),
    "not UTF-8": (["model", "--dataset", "latin.txt"], 2, "--dataset latin.txt is not a text in UTF-8 (byte 3)"),
    "no dataset": (["model", "--dataset", "none.json"], 2, "--dataset none.json: No such file or directory"),
    "another model's LoRA": (["model", "--lora", "lora"], 1, "lora/adapter_model.safetensors: model.layers.0."),
    "a LoRA that is not there": (["model", "--lora", "nothing"], 2, "--lora nothing: nothing is not a folder"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_refused_before_anything_is_built(toolkit: Installed, place: Path, mistake: str) -> None:
    """In under 2 s of computing, so that a busy machine does not matter."""
    arguments, code, sentence = MISTAKES[mistake]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = rkconvert(*arguments, *BOARD, "-o", "out", env=toolkit.env, cwd=place)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1 or done.stderr.startswith("Usage:")
    assert not (place / "out").exists()
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_without_a_toolkit(place: Path, tmp_path: Path) -> None:
    done = rkconvert(place / "model", *BOARD, "-o", tmp_path / "out", env=environment(tmp_path))
    assert done.returncode == 1 and "rkllm-toolkit is not installed: get rkllm_toolkit-1.1.1-cp310" in done.stderr


@pytest.mark.parametrize("option", ["--npu-cores=3", "--dataset=x.json", "--optimization-level=1", "--device=cpu"])
def test_the_toolkits_options_without_the_toolkit(place: Path, tmp_path: Path, option: str) -> None:
    done = rkconvert(place / "model", option, "-o", tmp_path / "out", env=environment(tmp_path))
    assert done.returncode == 2
    assert f"{option.partition('=')[0]} is for rkllm-toolkit: give --target rk3588 as well" in done.stderr


def test_force_goes_on_with_what_is_only_likely(toolkit: Installed, place: Path, tmp_path: Path) -> None:
    """And then the toolkit says it, in its own words."""
    arguments = [place / "model", *BOARD, "-o", tmp_path, "--dtype", "w8a8_g128", "--force"]
    done = toolkit.rkconvert(*arguments)
    assert done.returncode == 1
    assert "Note: forced, though" in done.stderr and "320 inputs, which groups of 128 do not divide" in done.stderr
    assert "having printed: ERROR: group size 128 does not divide model.layers.0.mlp.down_proj" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def checkpoint(place: Path) -> Checkpoint:
    return open_checkpoint(place / "model")


@pytest.mark.parametrize(("times", "refused", "noted"), [(1.9, True, False), (2.5, False, True), (4.5, False, False)])
def test_memory_against_the_models_size(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, times: float, refused: bool, noted: bool
) -> None:
    half = int(checkpoint.nbytes * times / 2)
    monkeypatch.setattr(memory, "machine", lambda: memory.Memory(ram=half, swap=half, free=half))
    likely, notes = preflight.check_memory(checkpoint)
    assert (bool(likely), bool(notes)) == (refused, noted)
    said = str(likely[0].error) if likely else "".join(notes)
    assert ("times" not in said) and (not said or "GB of swap" in said)


def test_the_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\nSwapFree: 4000000 kB\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    assert memory.machine() == memory.Memory(16000000 << 10, 4000000 << 10, 12000000 << 10)
    (tmp_path / "cgroup").mkdir()
    for name, value in (("memory.max", 4 << 30), ("memory.current", 1 << 30), ("memory.swap.max", 0)):
        (tmp_path / "cgroup" / name).write_text(f"{value}\n")
    assert memory.machine() == memory.Memory(4 << 30, 0, 3 << 30)
    (tmp_path / "cgroup" / "memory.max").write_text("max\n")
    assert memory.machine().ram == 16000000 << 10


def test_the_manuals_rule_about_outputs_is_only_noted(tmp_path: Path) -> None:
    model = models.tiny_llama(tmp_path / "m", hidden=128, heads=2, kv_heads=1, head_dim=64, intermediate=256)
    from rk3588 import quant

    likely, notes = preflight.check_model(open_checkpoint(model), [quant.scheme("w8a8_g128")], RELEASE)
    assert likely == []
    assert notes == [
        "the manual asks that a group of 128 divide a layer's outputs, which it does not for N = 64; published models "
        "do not keep to that"
    ]


def test_a_q4_0_file_as_llama_cpp_makes_them_is_only_likely_to_fail(tmp_path: Path) -> None:
    """Its output layer has another type: --force tries it."""
    tiny = models.Tiny(hidden=128, heads=2, kv_heads=2, head_dim=64, intermediate=256)
    file = models.write_gguf(tmp_path / "m.gguf", tiny, tiny.weights(), "Q4_0")
    source = open_checkpoint(file)
    assert preflight.check_model(source, [], RELEASE)[0] == []
    from dataclasses import replace

    output = replace(source.tensors["output.weight"], kind="Q6_K")
    likely, _ = preflight.check_model(replace(source, tensors={**source.tensors, "output.weight": output}), [], RELEASE)
    assert "tensor output.weight has type Q6_K" in str(likely[0].error)
