"""``--target rk3588 --rotate``: rkllm-toolkit is given a folder, which is the one that --emit-hf writes."""

from __future__ import annotations

import json
from pathlib import Path

from rk3588 import bundle
from rkconvert.build import write_checkpoint
from rkconvert.request import Request
from rkconvert.sources.opening import open_source
from tests import loras, models
from tests.deploy.test_board_build import exported, recorded
from tests.toolkit_double import Installed


def test_a_board_is_given_the_folder_that_emit_hf_writes(toolkit: Installed, tmp_path: Path) -> None:
    model = models.tiny_llama(tmp_path / "tiny", hidden=72, tied=True)
    record = tmp_path / "record"
    words = (model, "--rotate", "--target=rk3588", "--target=sim", "-o", tmp_path / "out")
    done = toolkit.rkconvert(*words, "--emit-hf", tmp_path / "turned", RKLLM_DOUBLE_RECORD=str(record))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "tiny-rk3588-w8a8-rotated"
    assert done.stdout.splitlines() == [str(tmp_path / "turned"), str(folder)]
    (load,) = recorded(record, "load_huggingface")
    assert load["model"] != str(model) and not Path(load["model"]).exists()
    given = exported(folder / "model.rkllm")["model"]
    assert given == {"model.safetensors": bundle.sha256(tmp_path / "turned" / "model.safetensors")}
    assert bundle.read(folder).manifest["rotation"]["basis"] == json.loads(
        (tmp_path / "turned" / "config.json").read_text()
    )["rkconvert_rotation"]["basis"]


def test_for_a_board_adapters_are_merged_or_refused(toolkit: Installed, tmp_path: Path) -> None:
    tiny = models.Tiny()
    model = models.tiny_llama(tmp_path / "m")
    adapter = loras.peft_lora(tmp_path / "a", tiny)
    words = (model, "--rotate", "--target=rk3588", "-o", tmp_path / "out", f"--lora={adapter}")
    refused = toolkit.rkconvert(*words)
    assert refused.returncode == 2 and refused.stdout == ""
    assert "would read the LoRA a as it is, which is not for the changed model: merge it" in refused.stderr
    turned = ("--emit-hf", tmp_path / "turned")
    done = toolkit.rkconvert(*words, "--lora-mode=merge", *turned)
    assert done.returncode == 0, done.stderr
    given = exported(tmp_path / "out" / "m-rk3588-w8a8-rotated" / "model.rkllm")["model"]
    assert given["model.safetensors"] == bundle.sha256(tmp_path / "turned" / "model.safetensors")


def test_a_gguf_file_for_a_board_takes_two_steps(tmp_path: Path, toolkit: Installed) -> None:
    file = models.tiny_gguf(tmp_path / "m.gguf", dtype="F16")
    refused = toolkit.rkconvert(file, "--rotate", "--target=rk3588", "-o", tmp_path / "out")
    assert refused.returncode == 2 and "write the folder with --emit-hf DIR and convert that" in refused.stderr
    write_checkpoint(Request(rotate="hadamard", emit_hf=tmp_path / "m").plan(open_source(file), "m", None))
    done = toolkit.rkconvert(tmp_path / "m", "--target=rk3588", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert bundle.read(tmp_path / "out" / "m-rk3588-w8a8").manifest["rotation"]["kind"] == "hadamard"


def test_a_smoothed_model_goes_to_a_board_likewise(toolkit: Installed, tmp_path: Path) -> None:
    model = models.tiny_llama(tmp_path / "tiny", hidden=72, tied=True)
    texts = tmp_path / "texts.txt"
    texts.write_text("One text. It is short.\n\nAnother. It is as short.")
    words = (model, "--smooth", "--target=rk3588", "-o", tmp_path / "out", f"--dataset={texts}")
    done = toolkit.rkconvert(*words, "--emit-hf", tmp_path / "smooth")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "tiny-rk3588-w8a8-smooth"
    given = exported(folder / "model.rkllm")["model"]
    assert given == {"model.safetensors": bundle.sha256(tmp_path / "smooth" / "model.safetensors")}
    manifest = bundle.read(folder).manifest
    assert manifest["smoothing"] == {"alpha": 0.5}
    assert manifest["calibration"] == manifest["toolkit"]["dataset"] and manifest["calibration"]["samples"] == 2
