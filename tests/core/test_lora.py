"""LoRA from end to end, with an adapter that peft trained (tests/golden_lora/make.py) to make a random model talk."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rk3588 import bundle
from rk3588.errors import RuntimeFailure, UsageError
from rk3588.hostlib import SimModel
from rkruntime.binding import RKLLM
from rkruntime.model import Model, Settings
from tests.convert.test_convert_cli import rkconvert
from tests.core.test_cli import rk3588
from tests.golden_lora import cases

Bundles = Mapping[tuple[str, str], Path]
DTYPES = ("w8a8", "w8a8_g128", "fp16", "fp32")
ADAPTER = "lora/pirate.gguf"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Bundles by way (adapter, merge, plain) and dtype."""
    folder = tmp_path_factory.mktemp("lora")
    base = cases.base_model(folder / "tiny")
    dtypes = [f"--dtype={dtype}" for dtype in DTYPES]
    ways = {"plain": [], "adapter": ["--lora", cases.ADAPTER],
            "merge": ["--lora", cases.ADAPTER, "--lora-mode", "merge"]}  # fmt: skip
    for way, options in ways.items():
        done = rkconvert(base, "-o", folder / way, *dtypes, *options)
        assert (done.returncode, done.stderr) == (0, "")
    return {(way, dtype): folder / way / f"tiny-rk3588-{dtype}" for way in ways for dtype in DTYPES}


def logits(path: Path, adapter: Path | None = None, scale: float = 1.0) -> Any:
    with SimModel(path / bundle.SIM_MODEL, threads=2) as model:
        model.use_lora(adapter, scale)
        return model.logits(cases.load()["ids"].tolist())


def test_logits_are_those_of_transformers_and_peft(built: Bundles) -> None:
    golden, path = cases.load(), built["adapter", "fp32"]
    np.testing.assert_allclose(logits(path), golden["base"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(logits(path, path / ADAPTER), golden["adapted"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(logits(built["merge", "fp32"]), golden["adapted"], rtol=0, atol=1e-3)
    assert np.abs(golden["adapted"] - golden["base"]).max() > 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kept_adapter_leaves_the_model_as_it_is(built: Bundles, dtype: str) -> None:
    kept, plain = ((built[way, dtype] / bundle.SIM_MODEL).read_bytes() for way in ("adapter", "plain"))
    assert kept == plain
    assert (built["merge", dtype] / bundle.SIM_MODEL).read_bytes() != plain


@pytest.mark.parametrize("dtype", ["w8a8", "w8a8_g128"])
def test_merged_equals_kept_to_the_error_of_quantising(built: Bundles, dtype: str) -> None:
    """Both are as near to the exact answer as int8 brings the base to its own."""
    exact = cases.load()
    error = np.abs(logits(built["plain", dtype]) - exact["base"]).mean()
    kept = logits(built["adapter", dtype], built["adapter", dtype] / ADAPTER)
    merged = logits(built["merge", dtype])
    for found in (kept, merged):
        assert np.abs(found - exact["adapted"]).mean() < 3 * error
    assert np.abs(kept - merged).mean() < 4 * error


@pytest.fixture
def llm(built: Bundles, rkllm_library: Path) -> Any:
    path = built["adapter", "w8a8"] / bundle.SIM_MODEL
    with RKLLM(path, library=rkllm_library, top_k=1, repeat_penalty=1.0, max_new_tokens=20) as llm:
        yield llm


def say(llm: RKLLM, lora: str | None = None) -> str:
    return "".join(token.text for token in llm.generate(cases.PROMPT, lora=lora))


def test_an_adapter_changes_answers_when_and_only_when_it_is_selected(llm: RKLLM, built: Bundles) -> None:
    before = say(llm)
    llm.load_lora(built["adapter", "w8a8"] / ADAPTER, "pirate")
    llm.load_lora(built["adapter", "w8a8"] / ADAPTER, "asleep", scale=0)
    assert llm.loras == ("pirate", "asleep")
    assert say(llm) == before != cases.ANSWER
    assert say(llm, "pirate") == cases.ANSWER
    assert say(llm) == say(llm, "asleep") == before
    assert say(llm, "pirate") == cases.ANSWER


def test_what_the_binding_refuses(llm: RKLLM, built: Bundles, tmp_path: Path) -> None:
    path = built["adapter", "w8a8"] / ADAPTER
    llm.load_lora(path, "pirate")
    refused: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (UsageError, "no LoRA called 'parrot' is loaded; there are: pirate", lambda: llm.generate("x", lora="parrot")),
        (UsageError, "there is no LoRA file", lambda: llm.load_lora(tmp_path / "none", "a")),
        (UsageError, "called 'pirate' is loaded already", lambda: llm.load_lora(path, "pirate")),
        (UsageError, "'' cannot be a LoRA's name", lambda: llm.load_lora(path, "")),
        (UsageError, "the scale of the LoRA 'a' is nan", lambda: llm.load_lora(path, "a", float("nan"))),
        (RuntimeFailure, "cannot load the LoRA .*model.sim.gguf: rkllm_load_lora failed",
         lambda: llm.load_lora(path.parent.parent / bundle.SIM_MODEL, "a")),
    ]  # fmt: skip
    for kind, message, call in refused:
        with pytest.raises(kind, match=message):
            call()
    assert llm.loras == ("pirate",)
    llm.close()
    with pytest.raises(UsageError, match="has been closed"):
        llm.load_lora(path, "a")


def test_no_adapter_is_loaded_while_a_run_goes_on(built: Bundles, rkllm_library: Path) -> None:
    """The twin could; of the real library nobody has said so."""
    path = built["adapter", "w8a8"]
    endless = {"top_k": 1, "repeat_penalty": 1.0, "presence_penalty": -1000.0}  # the first token, for ever
    with RKLLM(path / bundle.SIM_MODEL, library=rkllm_library, **endless) as llm:  # type: ignore[arg-type]
        with llm.generate([70]) as running:
            next(running)
            with pytest.raises(RuntimeFailure, match="a run is going on"):
                llm.load_lora(path / ADAPTER, "late")
        llm.load_lora(path / ADAPTER, "late")
        assert llm.loras == ("late",)


def run(path: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return rk3588("run", path, cases.PROMPT, "--raw", "--temp", "0", "--repeat-penalty", "1", "-n", "20", *options)


def test_run_with_a_lora(built: Bundles, tmp_path: Path) -> None:
    path = built["adapter", "w8a8"]
    plain = run(path)
    assert plain.returncode == 0 and plain.stdout != f"{cases.ANSWER}\n"
    odd = tmp_path / "my: file.gguf"
    odd.write_bytes((path / ADAPTER).read_bytes())
    for chosen in ("pirate", "pirate:captain", "pirate:captain:1.0", path / ADAPTER, f"{odd}:captain", f"{odd}:c:1"):
        done = run(path, "--lora", chosen)
        assert (done.returncode, done.stdout) == (0, f"{cases.ANSWER}\n"), done.stderr
    assert run(path, "--lora", "pirate::0").stdout == plain.stdout
    assert json.loads(run(path, "--lora", "pirate", "--json").stdout)["lora"] == "pirate"
    assert "lora" not in json.loads(run(path, "--json").stdout)
    assert run(built["merge", "w8a8"]).stdout == f"{cases.ANSWER}\n"


def test_the_scale_of_the_conversion_is_the_default(built: Bundles, tmp_path: Path) -> None:
    base = cases.base_model(tmp_path / "tiny")
    done = rkconvert(base, "-o", tmp_path, "--lora", f"{cases.ADAPTER}:hook:0")
    path = Path(done.stdout.strip())
    assert run(path, "--lora", "hook").stdout == run(built["plain", "w8a8"]).stdout
    assert run(path, "--lora", "hook::1").stdout == f"{cases.ANSWER}\n"


@pytest.mark.parametrize(
    ("chosen", "code", "said"),
    [
        ("parrot", 2, "there is no LoRA file parrot, and those of this bundle are: pirate"),
        ("pirate:no name", 2, "'no name' cannot be an adapter's name"),
        ("pirate:a:loud", 2, "the scale is 'loud', expected a number"),
        ("pirate::inf", 2, "the scale is 'inf', expected a number"),
        ("MODEL:a", 1, "cannot load the LoRA"),
    ],
)
def test_what_run_refuses(built: Bundles, chosen: str, code: int, said: str) -> None:
    path = built["adapter", "w8a8"]
    done = run(path, "--lora", chosen.replace("MODEL", str(path / bundle.SIM_MODEL)))
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert (done.returncode, done.stdout, len(errors)) == (code, "", 1)
    assert said in errors[0]


def test_chat_changes_adapters(built: Bundles) -> None:
    lines = "Who are you?\n/lora\n/lora pirate\nWho are you?\n/lora off\n/clear\nWho are you?\n"
    done = rk3588(
        "chat", built["adapter", "w8a8"], "--temp", "0", "--repeat-penalty", "1", "-n", "20", text=lines
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("LoRA:")]
    assert told == [f"LoRA: {name}; there are: pirate" for name in ("none", "pirate", "none")]
    alone = rk3588("chat", built["adapter", "w8a8"], "--temp", "0", "--repeat-penalty", "1", "-n", "20", "--lora",
                   "pirate", text="Who are you?\n")  # fmt: skip
    assert alone.stdout == f"{cases.ANSWER}\n"


def test_a_model_that_fails_to_find_its_lora_is_unloaded(built: Bundles, rkllm_library: Path) -> None:
    settings = Settings(library=rkllm_library, lora="parrot")
    with pytest.raises(UsageError):
        Model(built["adapter", "w8a8"], settings, print)
    with Model(built["adapter", "w8a8"], Settings(library=rkllm_library, lora="pirate"), print) as model:
        assert model.lora == "pirate"


def test_the_manifest_says_what_was_done(built: Bundles) -> None:
    for dtype in DTYPES:
        plain, kept, merged = (bundle.read(built[way, dtype]) for way in ("plain", "adapter", "merge"))
        for one in (plain, kept, merged):
            bundle.verify(one)
        assert "lora" not in plain.manifest and plain.loras == merged.loras == {}
        assert kept.loras == {"pirate": bundle.Lora("pirate", 1.0, kept.path / ADAPTER, None)}
        (entry,) = merged.manifest["lora"]["adapters"]
        assert merged.manifest["lora"]["mode"] == "merge" and "artifacts" not in entry
        assert (entry["name"], entry["rank"], entry["alpha"], entry["layers"]) == ("pirate", 4, 8.0, 14)
        assert not (merged.path / "lora").exists() and not (plain.path / "lora").exists()
        cards = [(one.path / "README.md").read_text() for one in (plain, kept, merged)]
        assert ["LoRA" in card for card in cards] == [False, True, True]
        assert "merged into the weights" in cards[2] and "`--lora pirate` selects it" in cards[1]
