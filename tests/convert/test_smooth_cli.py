"""``rkconvert --smooth`` and ``--rotate learned`` as a user gives them: the plan, the manifest, adapters, folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rk3588 import bundle, hostlib
from rk3588.errors import UsageError
from rkconvert import calibration
from rkconvert.adapters import lora
from rkconvert.request import Request
from rkconvert.sources.opening import open_source
from tests import loras, models
from tests.convert.test_families import TOLERANCE, difference, folder_of, logits
from tests.convert.test_rotate_cli import rkconvert
from tests.golden_families import cases, gguf_files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_llama(tmp_path_factory.mktemp("source") / "tiny", hidden=72, tied=True)


@pytest.mark.parametrize(
    ("form", "name", "alpha"),
    [
        (["MODEL", "--smooth"], "smooth", 0.5),
        (["--smooth", "MODEL"], "smooth", 0.5),
        (["--smooth", "0.35", "MODEL"], "smooth0.35", 0.35),
        (["--rotate", "--smooth", "MODEL"], "rotated-smooth", 0.35),
        (["--rotate", "--smooth=0.5", "MODEL"], "rotated-smooth0.5", 0.5),
        (["--smooth=1", "--rotate", "MODEL"], "rotated-smooth1", 1.0),
    ],
)
def test_the_share_may_be_left_out_wherever_the_option_stands(
    form: list[str], name: str, alpha: float, model: Path, tmp_path: Path
) -> None:
    words = [str(model) if word == "MODEL" else word for word in form]
    done = rkconvert(*words, "-o", tmp_path)
    assert done.output.splitlines()[-1] == str(tmp_path / f"tiny-rk3588-w8a8-{name}"), done.output
    manifest = bundle.read(tmp_path / f"tiny-rk3588-w8a8-{name}").manifest
    assert manifest["smoothing"] == {"alpha": alpha} and ("rotation" in manifest) is ("--rotate" in form)
    assert manifest["calibration"]["name"] == calibration.BUILT_IN
    assert manifest["model"]["tied"] is ("--rotate" not in form)


def test_texts_of_ones_own(model: Path, tmp_path: Path) -> None:
    """They are named, hashed, and make another model; for what measures nothing they are refused."""
    texts = tmp_path / "talks.txt"
    texts.write_text("A first text. It has two sentences.\n\nAnd a second one. It has as many.")
    made = []
    for dataset in ((), ("--dataset", texts)):
        out = tmp_path / str(len(dataset))
        rkconvert(model, "--smooth", "--rotate", "learned", *dataset, "-o", out)
        made.append(bundle.read(out / "tiny-rk3588-w8a8-rotated-learned-smooth").manifest)
    assert made[1]["calibration"]["name"] == "talks.txt" and made[1]["calibration"]["samples"] == 2
    assert made[0]["rotation"]["basis"] != made[1]["rotation"]["basis"]
    with pytest.raises(UsageError, match="give --target rk3588 as well, or --smooth or --rotate learned"):
        rkconvert(model, "--rotate", "--dataset", texts, "-o", tmp_path)


def test_the_plan_tells_it_and_measures_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rkconvert.rotation.forward.run", None)
    words = (model, "--smooth", "--rotate", "learned", "-o", tmp_path, "--dry-run")
    told = rkconvert(*words).output
    assert "\nrotated: learned, R1 and R2, seed 0\nsmoothed: alpha 0.35\n" in told
    assert "\ncalibrated with: built-in, 28 samples\n" in told
    plan = json.loads(rkconvert(*words, "--json").output)
    assert plan["smoothing"] == {"alpha": 0.35} and plan["calibration"]["samples"] == 28
    plain = json.loads(rkconvert(model, "-o", tmp_path, "--dry-run", "--json").output)
    assert plan["memory_bytes"] > plain["memory_bytes"]


@pytest.mark.parametrize(
    ("smooth", "said"),
    [("much", "--smooth much: give a number from 0 to 1, or none for 0.5"), ("1.5", "it is a share, from 0 to 1"),
     ("-0.1", "it is a share, from 0 to 1"), ("nan", "it is a share, from 0 to 1")],
)  # fmt: skip
def test_a_share_that_is_none(smooth: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Request(smooth=smooth).check()
    assert said in str(refused.value)


@pytest.mark.parametrize("rotate", [None, "learned"])
def test_an_adapter_goes_with_its_model(rotate: str | None, model: Path, tmp_path: Path) -> None:
    """What adapter and model say together is what they say without; and so where it is merged."""
    adapter = loras.peft_lora(tmp_path / "a", models.Tiny(hidden=72))
    found = []
    for how in ([], ["--smooth", *([f"--rotate={rotate}"] if rotate else [])]):
        for mode in lora.MODES:
            out = tmp_path / f"{len(how)}{mode}"
            rkconvert(model, *how, f"--lora={adapter}", f"--lora-mode={mode}", "--dtype=fp32", "-o", out)
            (folder,) = out.iterdir()
            with hostlib.SimModel(folder / "model.sim.gguf") as runtime:
                plain = runtime.logits(cases.ids(20))
                if mode == "adapter":
                    runtime.use_lora(folder / "lora" / "a.gguf")
                    assert difference(runtime.logits(cases.ids(20)), plain) > 0.01
                found.append(runtime.logits(cases.ids(20)))
    for other in found[1:]:
        assert difference(other, found[0]) < TOLERANCE


@pytest.mark.parametrize("name", ["gemma3", "phi2", "phi3", "qwen2"])
def test_a_folder_says_the_same_in_the_names_of_its_family(name: str, tmp_path: Path) -> None:
    """transformers reads them in CI: tests/golden_families/rotated.py."""
    original = folder_of(name, tmp_path / "m")
    rkconvert(original, "--smooth", "--emit-hf", tmp_path / "smooth")
    source, golden = open_source(tmp_path / "smooth"), cases.load(name)
    assert source.config == open_source(original).config
    assert difference(logits(source, tmp_path), golden["logits"]) < TOLERANCE
    said, was = (json.loads((place / "config.json").read_text()) for place in (tmp_path / "smooth", original))
    assert said == {**was, "torch_dtype": "float32"}
    assert "--smooth 0.5`" in (tmp_path / "smooth" / "README.md").read_text()
    before, after = (logits(open_source(place), tmp_path, dtype="w8a8") for place in (original, tmp_path / "smooth"))
    assert not np.array_equal(before, after)


def test_a_folder_of_a_gguf_file(tmp_path: Path) -> None:
    rkconvert(gguf_files.write("qwen2", tmp_path / "tiny.gguf"), "--smooth", "--emit-hf", tmp_path / "smooth")
    source = open_source(tmp_path / "smooth")
    assert source.config.tied
    assert difference(logits(source, tmp_path), cases.load("qwen2")["logits"]) < 5e-3  # the file is in fp16


def test_texts_that_the_model_writes(model: Path, tmp_path: Path) -> None:
    """Without a board, as with one: they are written once, of the model as it was before."""
    words = (model, "--smooth", "--rotate", "learned", "--dataset", "generate:2")
    plan = json.loads(rkconvert(*words, "-o", tmp_path, "--dry-run", "--json").output)
    assert plan["calibration"]["samples"] == 2 and any("the model writes 2 answers" in note for note in plan["notes"])
    rkconvert(*words, "-o", tmp_path, "--emit-hf", tmp_path / "hf")
    manifest = bundle.read(tmp_path / "tiny-rk3588-w8a8-rotated-learned-smooth").manifest
    assert {key: manifest["calibration"][key] for key in plan["calibration"]} == plan["calibration"]
    assert len(manifest["calibration"]["sha256"]) == 64
