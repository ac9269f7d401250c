"""How tokens are drawn: the model's own wishes, kept from its source to its runtime; defaults; what a user says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest

from rk3588 import bundle as bundles
from rk3588 import sampling
from rk3588.commands.bundle import describe
from rk3588.errors import BundleError
from rk3588.sampling import DEFAULTS, Sampling, settle
from rkconvert.sources.opening import open_source
from rkruntime.model import Model
from rkruntime.settings import Settings
from tests import models, quickstart
from tests.convert.test_convert import bundles as converted
from tests.core.test_cli import ANSWER, invoke
from tests.fakes import bundle_for_both, fake_rkllm, journal

LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096}
QWEN = {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20, "top_p": 0.8}


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ({}, {}, DEFAULTS),
        (LLAMA, {}, Sampling(0.6, 40, 0.9, 1.0)),
        (QWEN, {}, Sampling(0.7, 20, 0.8, 1.1)),
        (QWEN, {"temperature": 0.0, "repeat_penalty": 1.0}, Sampling(0.0, 20, 0.8, 1.0)),
        ({"do_sample": False, "temperature": 0.7}, {}, DEFAULTS._replace(temperature=0.0)),
        ({"do_sample": False}, {"top_p": 0.5}, DEFAULTS._replace(top_p=0.5)),
        ({"top_k": 0}, {}, DEFAULTS._replace(top_k=1 << 20)),
    ],
)
def test_what_is_asked_else_the_models_own_else_defaults(
    own: dict[str, Any], asked: dict[str, Any], expected: Sampling
) -> None:
    kept, remarks = sampling.of_model(own, "x")
    assert remarks == ()
    assert settle(kept, asked) == expected
    assert Settings(**asked).sampling(kept) == expected


def test_the_penalty_is_none_unless_the_model_asks() -> None:
    """1.1, the library's own, made small models avoid the words of the question."""
    assert DEFAULTS.repeat_penalty == 1.0


@pytest.mark.parametrize(
    "value",
    ["0.7", True, [0.7], {"a": 1}, float("nan"), float("inf"), -1, 10**400, "x" * 10_000],
    ids=lambda value: str(value)[:20],
)
def test_values_that_cannot_be_meant_are_named_and_left_out(value: Any) -> None:
    kept, remarks = sampling.of_model({"temperature": value, "top_p": 0.5}, "generation_config.json")
    assert kept == {"top_p": 0.5}
    assert (
        len(remarks) == 1 and remarks[0].startswith("generation_config.json: temperature is ") and len(remarks[0]) < 200
    )


def test_a_folders_wishes_reach_the_runtime(tmp_path: Path) -> None:
    """From generation_config.json to what the library is initialised with; `bundle show` says it on the way."""
    source = models.tiny_llama(tmp_path / "m")
    (source / "generation_config.json").write_text(json.dumps({**QWEN, "top_p": 7}))
    assert any("top_p is 7, which is no value for it" in note for note in open_source(source).notes)
    (made,) = converted(source, tmp_path / "out", "w8a8")
    wanted = {key: value for key, value in QWEN.items() if key != "top_p"}
    assert made.sampling == wanted
    shown = describe(made)
    assert "temperature 0.7, top_k 20, top_p 0.9, repeat_penalty 1.1 (as the model asks)" in shown
    assert "repetition_penalty" in shown
    library = fake_rkllm(tmp_path)
    both = bundle_for_both(tmp_path / "both", made.path, ANSWER)
    invoke("run", both, "x", "--library", library)
    assert journal(library)[0].startswith("init ctx=512 new=-1 k=20 p=0.9 t=0.7 repeat=1.1 ")
    invoke("run", both, "x", "--library", library, "--temp", "0.5", "--repeat-penalty", "1")
    assert journal(library)[0].startswith("init ctx=512 new=-1 k=20 p=0.9 t=0.5 repeat=1 ")


def test_a_gguf_files_wishes() -> None:
    keys = gguf.Keys.General
    metadata = {keys.SAMPLING_TEMP: 0.6000000238418579, keys.SAMPLING_TOP_K: 20, keys.SAMPLING_PENALTY_REPEAT: 1.0}
    assert sampling.of_gguf(metadata, "x") == ({"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.0}, ())
    assert sampling.of_gguf({keys.SAMPLING_TEMP: "hot"}, "x.gguf")[1][0].startswith("x.gguf: temperature is 'hot'")


def test_without_wishes_the_defaults(tiny_bundles: Mapping[str, Path]) -> None:
    bundle = bundles.read(tiny_bundles["w8a8"])
    assert bundle.sampling == {"do_sample": True}  # which says nothing of how
    assert f"{DEFAULTS} (by default: the model asks for nothing)" in describe(bundle)
    with Model(bundle.path, Settings(), print) as model:
        assert model.sampling == DEFAULTS


@pytest.mark.parametrize("entry", [[], {"temperature": "hot"}, {"top_k": 10**30}, {"unknown": 1}, None])
def test_a_manifest_that_asks_for_nonsense_is_refused(
    tmp_path: Path, tiny_bundles: Mapping[str, Path], entry: Any
) -> None:
    with pytest.raises(BundleError, match="'sampling' holds what is no setting"):
        bundles.read(bundle_for_both(tmp_path / "b", tiny_bundles["w8a8"], ANSWER, sampling=entry))


@pytest.mark.model
def test_six_of_six_say_paris(smollm2_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the library's own defaults three of six were gibberish."""
    answers = []
    for seed in range(6):
        monkeypatch.setenv("RKSIM_SEED", str(seed))
        with Model(smollm2_bundles["w8a8"], Settings(max_tokens=32), print) as model:
            prompt = model.prompts.chat([{"role": "user", "content": "What is the capital of France?"}])
            answers.append("".join(model.answer(prompt)))
    assert all("Paris" in answer for answer in answers), answers


def test_quickstart_prints_the_commands_behind_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it shows has to be what its user gets."""
    ran: list[tuple[str, ...]] = []

    def run(*command: str) -> str:
        ran.append(command)
        return json.dumps([{"decode_tok_s": {"low": 1, "high": 2}}] if "predict" in command else {"text": "Paris."})

    monkeypatch.setattr(quickstart, "run", run)
    monkeypatch.setattr(quickstart, "bundle", lambda _: Path("tests"))
    asked = quickstart.ask("w8a8")
    told = quickstart.report([asked], "Paris.")
    commands = [shlex.split(line) for line in told.partition("Next:")[2].splitlines()]
    assert [part for part in ran[0] if part != "--json"] in commands
    assert any("deploy" in command and "temperature=0" in command for command in commands)
