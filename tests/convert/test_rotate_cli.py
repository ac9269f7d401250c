"""``rkconvert --rotate`` as a user gives it: options, the plan, what goes together, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rk3588 import bundle
from rk3588.errors import RkError, UsageError
from rkconvert.commands import build
from rkconvert.request import Request
from tests import loras, models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_llama(tmp_path_factory.mktemp("source") / "tiny", hidden=72, tied=True)


def rkconvert(*arguments: object) -> Result:
    """In this process; an error of ours is raised, as the program would print it."""
    found = CliRunner().invoke(build, list(map(str, arguments)))
    if isinstance(found.exception, RkError):
        raise found.exception
    return found


@pytest.mark.parametrize("form", [["MODEL", "--rotate"], ["--rotate", "MODEL"], ["MODEL", "--rotate=hadamard"],
                                  ["--rotate", "hadamard", "MODEL"]])  # fmt: skip
def test_the_kind_may_be_left_out_wherever_the_option_stands(form: list[str], model: Path, tmp_path: Path) -> None:
    words = [str(model) if word == "MODEL" else word for word in form]
    done = rkconvert(*words, "-o", tmp_path)
    assert done.output.splitlines()[-1] == str(tmp_path / "tiny-rk3588-w8a8-rotated"), done.output
    assert bundle.read(tmp_path / "tiny-rk3588-w8a8-rotated").manifest["rotation"]["kind"] == "hadamard"


def test_no_model_at_all(tmp_path: Path) -> None:
    done = rkconvert("--rotate", "-o", tmp_path)
    assert done.exit_code == 2 and "Missing argument 'MODEL'" in done.output


def test_the_plan_tells_it(model: Path, tmp_path: Path) -> None:
    words = (model, "--rotate", "-o", tmp_path, "--emit-hf", tmp_path / "turned", "--emit-dtype", "bf16", "--dry-run")
    told = rkconvert(*words).output
    assert "embedding untied" in told and "\nrotated: hadamard, R1 and R2, seed 0\n" in told
    plan = json.loads(rkconvert(*words, "--json").output)
    assert plan["rotation"] == {"kind": "hadamard", "seed": 0, "matrices": ["R1", "R2"]}
    about = f"{plan['checkpoint']['bytes_about'] / 1e6:.1f} MB"
    assert f"\ncheckpoint: {tmp_path / 'turned'}, bf16, about {about}\n" in told
    assert plan["checkpoint"]["dtype"] == "bf16" and plan["model"]["tied"] is False
    assert list(tmp_path.iterdir()) == []
    done = json.loads(rkconvert(*words[:-1], "--json").output)
    (made,) = done["bundles"]
    assert abs(made["bytes"] - plan["bundles"][0]["bytes"]) < 10
    assert done["checkpoint"] == {
        "dtype": "bf16", "path": str(tmp_path / "turned"), "bytes": bundle.size(tmp_path / "turned"),
        "rounding_error": pytest.approx(0.0017, rel=0.2),
    }  # fmt: skip
    assert abs(done["checkpoint"]["bytes"] - plan["checkpoint"]["bytes_about"]) < 100_000


def test_a_folder_alone(model: Path, tmp_path: Path) -> None:
    done = rkconvert(model, "--rotate", "--emit-hf", tmp_path / "turned")
    assert "Note: no bundle is written: for one, give -o DIR as well" in done.output
    assert done.output.splitlines()[-1] == str(tmp_path / "turned")
    assert [path.name for path in tmp_path.iterdir()] == ["turned"]


def test_code_that_is_named_and_not_there_is_told(tmp_path: Path) -> None:
    """As of a model from the hub, of which code is not downloaded."""
    folder = models.tiny_llama(tmp_path / "m")
    settings = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "user/repo--modeling_x.XForCausalLM", "odd": 1}
    (folder / "config.json").write_text(json.dumps({**settings, "auto_map": code}))
    (folder / "configuration_x.py").write_text("")
    done = rkconvert(folder, "--rotate", "--emit-hf", tmp_path / "turned")
    assert "Note: config.json names modeling_x.py, the authors' code, which m lacks: add it" in done.output
    assert "configuration_x" not in done.output and (tmp_path / "turned" / "configuration_x.py").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rotate": "hadamrad"}, "--rotate hadamrad: did you mean 'hadamard'?"),
        ({"emit_hf": Path("x")}, "--emit-hf writes the model as --rotate turns it: give --rotate or --smooth as well"),
        ({"emit_dtype": "bf16", "rotate": "hadamard"}, "give --emit-hf DIR as well"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Request(**options).check()  # type: ignore[arg-type]
    assert said in str(refused.value)


def test_a_kept_adapter_does_not_fit_into_a_folder(model: Path, tmp_path: Path) -> None:
    tiny = models.Tiny(hidden=72)
    adapter = loras.peft_lora(tmp_path / "a", tiny)
    with pytest.raises(UsageError, match="--emit-hf: a folder holds no LoRA: merge a with --lora-mode merge"):
        rkconvert(model, "--rotate", f"--lora={adapter}", "--emit-hf", tmp_path / "turned")
