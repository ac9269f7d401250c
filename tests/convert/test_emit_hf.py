"""`--emit-hf`: the rotated model as a Hugging Face folder of its own family, which says the same as the original.

That transformers reads it so is checked with torch, by tests/golden_families/rotated.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rk3588 import bundle, hostlib, quant
from rk3588.errors import CheckpointError, TargetTaken, UsageError
from rkconvert.adapters import lora
from rkconvert.architectures.to_config_json import different
from rkconvert.build import convert, write_checkpoint
from rkconvert.cards.front_matter import split
from rkconvert.request import Request
from rkconvert.rotation import emit
from rkconvert.rotation.prepare import prepared
from rkconvert.sources.base import Source
from rkconvert.sources.huggingface import read_header
from rkconvert.sources.opening import open_source
from tests import loras, models
from tests.convert.test_families import TOLERANCE, difference, folder_of, logits
from tests.convert.test_families_gguf import folder_of as folder_of_gguf
from tests.convert.test_rotation import REFUSED, TAKEN, everything
from tests.golden_families import cases, gguf_files, remote
from tests.plans import make_plan


def emitted(source: Source, folder: Path, **options: Any) -> Path:
    request = Request(rotate="hadamard", emit_hf=folder, **options)
    write_checkpoint(request.plan(source, "tiny", None))
    return folder


def turned(source: Source) -> Source:
    return prepared(make_plan(source, "tiny", Path(), [], rotate="hadamard")).sim_source


def assert_same_weights(found: Source, wanted: Source) -> None:
    here, there = everything(found), everything(wanted)
    assert here.keys() == there.keys()
    for name, values in here.items():
        np.testing.assert_array_equal(values, there[name], err_msg=name)


def of_case(name: str, folder: Path) -> Path:
    if name in cases.CASES:
        return folder_of(name, folder)
    return models.write_llama(folder, dict(remote.CASES[name]), remote.weights(name))


@pytest.mark.parametrize("name", [*TAKEN, "internlm2_dynamic", "minicpm4"])
def test_a_folder_says_the_same_in_the_names_of_its_family(name: str, tmp_path: Path) -> None:
    original = of_case(name, tmp_path / "m")
    source = open_source(original)
    folder = emitted(source, tmp_path / "turned")
    names, before = (set(read_header(place / "model.safetensors")) for place in (folder, original))
    assert names - before <= {"lm_head.weight"} and before <= names
    said, was = (json.loads((place / "config.json").read_text()) for place in (folder, original))
    basis = said.pop("rkconvert_rotation")["basis"]
    assert said == {**was, "tie_word_embeddings": False, "torch_dtype": "float32"}
    again = open_source(folder)
    assert again.config == replace(source.config, tied=False, rotation=basis)
    assert_same_weights(again, turned(source))


@pytest.mark.parametrize("name", [name for name in gguf_files.CASES if name not in (*REFUSED, "qwen2_yarn")])
def test_a_gguf_file_becomes_a_folder_with_the_settings_of_its_checkpoint(name: str, tmp_path: Path) -> None:
    source = open_source(gguf_files.write(name, tmp_path / "tiny.gguf"))
    again = open_source(emitted(source, tmp_path / "turned"))
    wanted = open_source(folder_of_gguf(name, tmp_path / "m"))
    assert not different(asdict(again.config), asdict(turned(wanted).config))
    assert again.vocabulary.tokens == source.vocabulary.tokens
    assert again.vocabulary.chat_template == source.vocabulary.chat_template
    assert_same_weights(again, turned(source))


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192},
    ],
)  # fmt: skip
def test_rope_scaling_out_of_a_gguf_file(scaling: dict[str, Any], tmp_path: Path) -> None:
    """Llama 3.2's are divisors there: the numbers that they were made of are found again."""
    source = open_source(models.tiny_gguf(tmp_path / "m.gguf", rope_scaling=scaling))
    folder = emitted(source, tmp_path / "turned")
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == scaling


def test_what_no_config_json_can_say_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    other = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0}
    scaling = {**other, "original_max_position_embeddings": 4096}
    source = open_source(models.tiny_gguf(tmp_path / "m.gguf", rope_scaling=scaling))
    with pytest.raises(CheckpointError, match=r"m\.gguf: its factors cannot be told in a config\.json"):
        emitted(source, tmp_path / "turned")
    assert not (tmp_path / "turned").exists()


def test_in_shards_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(models.tiny_llama(tmp_path / "m", tied=True, shards=2))
    one = open_source(emitted(source, tmp_path / "one"))
    monkeypatch.setattr(emit, "_MOST_SHARD", 100_000)
    folder = emitted(source, tmp_path / "many")
    assert len(list(folder.glob("model-*.safetensors"))) > 2 and not (folder / "model.safetensors").exists()
    total = sum(tensor.nbytes for tensor in one.tensors.values())
    assert json.loads((folder / "model.safetensors.index.json").read_text())["metadata"] == {"total_size": total}
    assert_same_weights(open_source(folder), one)


def test_bf16_says_what_it_lost(tmp_path: Path) -> None:
    source = open_source(models.tiny_llama(tmp_path / "m"))
    plan = Request(rotate="hadamard", emit_hf=tmp_path / "turned", emit_dtype="bf16").plan(source, "tiny", None)
    told = write_checkpoint(plan)
    assert told["bytes"] == bundle.size(tmp_path / "turned") and told["dtype"] == "bf16"
    again = open_source(tmp_path / "turned")
    assert {tensor.kind for tensor in again.tensors.values()} == {"BF16"}
    exact, rounded = (
        np.concatenate([values.ravel() for values in everything(one).values()]).astype(np.float64)
        for one in (turned(source), again)
    )
    lost = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0.001 < lost < 0.004 and told["rounding_error"] == pytest.approx(lost, rel=1e-3)
    assert f"changes weights by {lost:.2g} of their size" in (tmp_path / "turned" / "README.md").read_text()


def test_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    source = open_source(models.tiny_llama(tmp_path / "m", hidden=72, tied=True))
    one, two = (emitted(source, tmp_path / name) for name in ("one", "two"))
    for file in sorted(one.iterdir()):
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_a_bundle_of_a_folder_knows_that_it_is_rotated(tmp_path: Path) -> None:
    """And is the bundle of the original with --rotate, to the last bit of every tensor but the header's name."""
    source = open_source(models.tiny_llama(tmp_path / "m", tied=True))
    folder = emitted(source, tmp_path / "turned")
    again = open_source(folder)
    (made,) = convert(make_plan(again, "tiny", tmp_path / "1", [quant.scheme("w8a8")]))
    (wanted,) = convert(make_plan(source, "tiny", tmp_path / "2", [quant.scheme("w8a8")], rotate="hadamard"))
    assert bundle.read(made).manifest["rotation"] == bundle.read(wanted).manifest["rotation"]
    assert (made / "model.sim.gguf").read_bytes() == (wanted / "model.sim.gguf").read_bytes()
    with pytest.raises(UsageError, match=r"turned .*is rotated already \(hadamard-[0-9a-f]{16}\)"):
        make_plan(again, "tiny", tmp_path / "3", [quant.scheme("w8a8")], rotate="hadamard")


@pytest.mark.parametrize(
    "told",
    ["yes", {"basis": "hadamard"}, {"basis": "x" * 4000}, {"kind": "hadamard", "basis": "hadamard-0123456789abcdef"},
     {"kind": "b", "basis": "a-0123456789abcdef", "matrices": ["R1"]},
     {"kind": "a", "basis": "a-0123456789abcdef", "matrices": ["R1"], "more": 1}],
)  # fmt: skip
def test_what_a_config_json_says_of_it_is_checked(told: Any, tmp_path: Path) -> None:
    folder = models.tiny_llama(tmp_path / "m")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "rkconvert_rotation": told}))
    with pytest.raises(CheckpointError, match="rkconvert_rotation is not what rkconvert --emit-hf writes there"):
        open_source(folder)


def test_a_merged_adapter_is_in_it(tmp_path: Path) -> None:
    tiny = models.Tiny()
    source = open_source(models.tiny_llama(tmp_path / "m"))
    adapter = loras.peft_lora(tmp_path / "a", tiny)
    folder = emitted(source, tmp_path / "turned", loras=(f"{adapter}:mine:0.5",), lora_mode="merge")
    read = lora.read(lora.LoraOption(adapter, "mine", 0.5), source)
    (merged,) = convert(
        make_plan(source, "tiny", tmp_path / "out", [quant.scheme("fp32")], loras=[read], lora_mode="merge")
    )
    with hostlib.SimModel(merged / "model.sim.gguf") as model:
        wanted = model.logits(cases.ids(20))
    assert difference(logits(open_source(folder), tmp_path, 20), wanted) < TOLERANCE
    assert difference(logits(source, tmp_path, 20), wanted) > 0.1
    assert "The LoRA mine is merged, at scale 0.5" in (folder / "README.md").read_text()


def test_licences_and_code_go_with_it_and_strange_files_do_not(tmp_path: Path) -> None:
    folder = models.tiny_llama(tmp_path / "m")
    (folder / "README.md").write_text("---\nlicense: llama3.2\ntags: [chat]\n---\n# Original\n")
    for name in ("LICENSE", "modeling_tiny.py", "notes.txt", "pytorch_model.bin"):
        (folder / name).write_text(name)
    turned_folder = emitted(open_source(folder), tmp_path / "turned")
    facts, body = split((turned_folder / "README.md").read_text())
    assert facts == {"license": "llama3.2", "base_model": "m"}
    assert "# tiny, rotated" in body and "**Built with Llama**" in body and "came with the model: `LICENSE`" in body
    found = {file.name for file in turned_folder.iterdir()}
    assert {"LICENSE", "modeling_tiny.py", "README.md", "chat_template.jinja", "tokenizer.json"} <= found
    assert not {"notes.txt", "pytorch_model.bin"} & found


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    source = open_source(models.tiny_llama(tmp_path / "m"))
    (tmp_path / "there").mkdir()
    with pytest.raises(TargetTaken, match="there exists already: remove it, choose another --emit-hf, or"):
        emitted(source, tmp_path / "there")
    assert (emitted(source, tmp_path / "there", overwrite=True) / "config.json").exists()


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    folder = models.tiny_llama(tmp_path / "m")
    source = open_source(folder)
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:  # the last weight becomes no number
        file.seek(size - 2)
        file.write(b"\xc0\x7f")
    with pytest.raises(CheckpointError, match="is nan: the model is damaged"):
        emitted(source, tmp_path / "turned")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
