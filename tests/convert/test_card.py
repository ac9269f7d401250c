"""Model cards say what is so, keep what the original says, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rk3588 import bundle, quant
from rkconvert.build import convert
from rkconvert.cards import card, licences
from rkconvert.cards.card import Variant, model_card, naming_note, read_base
from rkconvert.cards.front_matter import split
from rkconvert.sources.opening import open_source
from tests import loras, models
from tests.plans import make_plan

BASE = """---
license: llama3.2
language: [en, de]
library_name: transformers
tags: [chat]
model-index: [{name: original, results: []}]
---
# Original

It answers *questions*.
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models.tiny_llama(tmp_path_factory.mktemp("m") / "Tiny")
    (folder / "README.md").write_text(BASE)
    (folder / "LICENSE.txt").write_text("the licence\n")
    (folder / "USE_POLICY.md").write_text("the policy\n")
    return folder


def made(model: Path, out: Path, dtype: str = "w8a8", **options: Any) -> tuple[Path, str]:
    (folder,) = convert(make_plan(open_source(model), "Tiny", out, [quant.scheme(dtype)], **options))
    return folder, (folder / "README.md").read_text()


def test_a_card_keeps_and_extends_the_originals(model: Path, tmp_path: Path) -> None:
    folder, text = made(model, tmp_path, "w8a8_g128")
    facts, body = split(text)
    assert facts == {
        "license": "llama3.2", "language": ["en", "de"], "tags": ["chat", "rk3588"], "base_model": "Tiny",
        "base_model_relation": "quantized", "quantization": "w8a8_g128",
    }  # fmt: skip
    assert body.rstrip().endswith("It answers *questions*.")
    assert body.index("## Variants") < body.index("## Licence") < body.index("## The original model card")
    # Licence: the notice, the duty, and the texts themselves.
    assert "**Built with Llama**" in body and "Llama 3.2 is licensed under the Llama 3.2 Community License" in body
    assert "`LICENSE.txt`, `USE_POLICY.md`" in body
    assert (folder / "LICENSE.txt").read_text() == "the licence\n"
    bundle.verify(bundle.read(folder))
    row = next(line for line in body.splitlines() if line.startswith("| w8a8_g128"))
    number = r"(?:\d\.\d|[\d,]*\d)"  # two digits that count
    assert re.fullmatch(
        rf"\| w8a8_g128 \| `model.sim.gguf` \| 0\.\d MB \| 512 tokens \| about 0\.\d{{2,3}} GB "
        rf"\| {number}, {number} to {number} tok/s \| {number}, {number} to {number} tok/s \|",
        row,
    )
    assert "LoRA" not in text and "accuracy has not been measured" in body
    assert "no NPU can run it" in body and ".rkllm 512" not in body


def test_a_lora_line_only_where_one_was_applied(model: Path, tmp_path: Path) -> None:
    from rkconvert.adapters import lora

    source = open_source(model)
    adapter = lora.read(lora.parse(str(loras.peft_lora(tmp_path / "tuned", models.Tiny()))), source)
    kept = made(model, tmp_path / "kept", loras=[adapter])[1]
    assert "- w8a8: LoRA tuned (rank 4, scale 1, trained on someone/tiny), `--lora tuned` selects it" in kept
    merged = made(model, tmp_path / "merged", loras=[adapter], lora_mode="merge")[1]
    assert "LoRA tuned (rank 4, scale 1, trained on someone/tiny), merged into the weights" in merged


def test_accuracy_only_where_it_was_measured(model: Path, tmp_path: Path) -> None:
    folder, _ = made(model, tmp_path)
    found = bundle.read(folder)
    variant = Variant(folder.name, found.manifest, {"sim": 1_000_000}, open_source(model).shape, True)
    measured = {
        "perplexity": 12.5, "reference_perplexity": 12.25, "divergence": 0.01, "agreement": 0.955, "tokens": 1024,
        "text": "a text",
    }  # fmt: skip
    other = replace(variant, folder="x", manifest={**found.manifest, "accuracy": measured})
    assert "Accuracy against" not in model_card([variant], read_base(model))
    both = model_card([variant, other], read_base(model))
    assert "perplexity 12.50 (fp32: 12.25), KL 0.010, same best token 96%, over 1024 tokens of a text" in both
    assert "not measured" in both and "accuracy has not been measured" not in both
    assert "| Accuracy against fp32 |" in both
    rough = replace(variant, manifest={**found.manifest, "accuracy": {**measured, "reference": "fp16"}})
    assert "| Accuracy against fp16 |" in model_card([rough], read_base(model))
    assert "perplexity 12.50 (fp16: 12.25)" in model_card([rough], read_base(model))


@pytest.mark.parametrize(
    "text",
    ["# No front matter\n", "---\nnot: [closed\n---\nx", "---\n- a list\n---\nx", "---\na: 1\n"],
)
def test_a_front_matter_that_is_none_stays_in_the_text(text: str) -> None:
    assert split(text) == ({}, text)


@pytest.mark.parametrize(
    ("licence", "name", "asks"),
    [("llama3.1", "MyModel", True), ("llama3.1", "Llama-3.1-8B", False), ("apache-2.0", "MyModel", False)],
)
def test_a_name_that_the_licence_does_not_allow(licence: str, name: str, asks: bool) -> None:
    assert bool(naming_note(name, card.Base({"license": licence}, ""))) is asks


def test_a_licence_that_is_not_known() -> None:
    assert licences.find("other", "gemma") is licences.LICENCES["gemma"]
    assert licences.find("cc-by-nc-4.0", "") is None


def test_a_model_that_cannot_chat_is_not_said_to(model: Path, tmp_path: Path) -> None:
    _, text = made(model, tmp_path / "chats")
    assert "rk3588 chat " in text and "--raw" not in text
    bare = tmp_path / "Bare"
    shutil.copytree(model, bare)
    tokenizer = json.loads((bare / "tokenizer_config.json").read_text())
    del tokenizer["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    folder, text = made(bare, tmp_path)
    assert "rk3588 chat" not in text and f'rk3588 run {folder.name} --raw "The capital' in text
    assert not Variant.of(bundle.read(folder)).can_chat


def test_a_rotated_variant_says_so_and_others_do_not(model: Path, tmp_path: Path) -> None:
    plain, text = made(model, tmp_path)
    turned, other = made(model, tmp_path, rotate="hadamard")
    assert "| w8a8, rotated (hadamard) |" in other and "its hidden states and input embeddings are in another" in other
    assert "otated" not in text
    _, smoothed = made(model, tmp_path, rotate="learned", smooth="0.25")
    assert "| w8a8, rotated (learned), smoothed (alpha 0.25) |" in smoothed
    both = model_card([Variant.of(bundle.read(one)) for one in (plain, turned)], read_base(model))
    assert "| w8a8 |" in both and "| w8a8, rotated (hadamard) |" in both
