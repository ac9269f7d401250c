"""Which bundles a sweep takes for its own: those made of the same model, adapters, data and options, and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rk3588 import bundle
from rk3588.errors import BundleError, UsageError
from rkconvert.build import convert
from rkconvert.sweep import sweep_file
from rkconvert.sweep.cells import Cell, OpenedModels
from rkconvert.sweep.commands import table
from rkconvert.sweep.made import MadeCells
from tests import loras, models
from tests.toolkit_double import Installed

SHAPE: dict[str, Any] = {"layers": 1, "hidden": 32, "intermediate": 32, "heads": 2, "kv_heads": 2, "head_dim": 16}


def cell(folder: Path, text: str) -> Cell:
    (folder / "sweep.yaml").write_text(f"dtypes: w8a8\nout: out\n{text}")
    (only,) = sweep_file.load(folder / "sweep.yaml", None).cells
    return only


def has(one: Cell) -> bool:
    return MadeCells(OpenedModels()).has(one)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two fine-tunes of one shape in folders of one name, and two adapters of one name."""
    for number, run in enumerate(("one", "two")):
        models.tiny_llama(tmp_path / run / "final", seed=number, **SHAPE)
        loras.peft_lora(tmp_path / run / "tuned", models.Tiny(**SHAPE), seed=number)
    return tmp_path


def test_another_model_of_the_same_name_and_size(place: Path) -> None:
    first = cell(place, "models: one/final")
    assert not has(first)
    convert(OpenedModels().plan(first))
    assert has(first)
    with pytest.raises(BundleError, match=r"is not what this sweep makes \(another model\): remove it"):
        has(cell(place, "models: two/final"))
    shutil.move(place / "one", place / "moved")  # where it lies does not tell a model from another
    assert has(cell(place, "models: moved/final"))
    template = place / "moved" / "final" / "tokenizer_config.json"
    template.write_text(template.read_text().replace("<|im_end|>", "<|im_over|>"))
    with pytest.raises(BundleError, match=r"another model"):
        has(cell(place, "models: moved/final"))


def test_rotated_and_plain_are_two_cells(place: Path) -> None:
    """A cell's process is told of it, its folder is called so, and another rotation in it is not the cell's."""
    (place / "sweep.yaml").write_text("models: one/final\nout: out\nrotate: [none, hadamard]\n")
    plain, turned = sweep_file.load(place / "sweep.yaml", None).cells
    assert (plain.folder.name, turned.folder.name) == ("final-rk3588-w8a8", "final-rk3588-w8a8-rotated")
    assert "--rotate=hadamard" in turned.arguments() and not any(a.startswith("--rotate") for a in plain.arguments())
    assert (plain.facts()["rotate"], turned.facts()["rotate"]) == (None, "hadamard")
    for each in (plain, turned):
        convert(OpenedModels().plan(each))
        assert has(each)
    shown = table([{**each.facts(), "state": "made"} for each in (plain, turned)])
    assert [line.split()[5] for line in shown.splitlines()] == ["rotate", "-", "hadamard"]
    manifest = turned.folder / bundle.MANIFEST
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(BundleError, match=r"another rotation"):
        has(turned)


def test_other_texts_make_another_rotation_that_is_learned(place: Path) -> None:
    sweep = "models: one/final\nout: out\nrotate: learned\ndataset: texts.txt\n"
    (place / "texts.txt").write_text("One text. It is short.")
    learned = cell(place, sweep)
    assert learned.folder.name == "final-rk3588-w8a8-rotated-learned"
    convert(OpenedModels().plan(learned))
    assert has(cell(place, sweep))
    (place / "texts.txt").write_text("Another text. It is as short.")
    with pytest.raises(BundleError, match=r"another dataset"):
        has(cell(place, sweep))


def test_a_model_that_is_gone_is_not_known_to_be_the_same(place: Path) -> None:
    only = cell(place, "models: {model: one/final, name: Mine}")
    convert(OpenedModels().plan(only))
    shutil.rmtree(place / "one")
    with pytest.raises(UsageError, match=r"final does not exist"):
        has(only)


def test_another_adapter_of_the_same_name_and_size(place: Path) -> None:
    first = cell(place, "models: one/final\nloras: one/tuned:fine:0.5")
    convert(OpenedModels().plan(first))
    assert has(first)
    with pytest.raises(BundleError, match=r"another LoRA fine\)"):
        has(cell(place, "models: one/final\nloras: two/tuned:fine:0.5"))
    with pytest.raises(BundleError, match=r"another LoRA\)"):
        has(cell(place, "models: one/final\nloras: one/tuned:fine:0.75"))
    with pytest.raises(BundleError, match=r"another lora_mode\)"):
        has(cell(place, "models: one/final\nlora_mode: merge\nloras: one/tuned:fine:0.5"))


def test_what_rkllm_toolkit_is_given(toolkit: Installed, place: Path) -> None:
    text = "models: one/final\ntargets: rk3588\nforce: true\nextra_qparams: more\ndataset: talk.txt\n"
    (place / "more").write_text("x")
    (place / "talk.txt").write_text("What is it? It is a dog.")
    first = cell(place, text)
    done = toolkit.rkconvert("sweep", place / "sweep.yaml")
    assert done.returncode == 0, done.stderr
    assert has(first)
    for other, what in (("device: cuda", "device"), ("npu_cores: 2", "npu_cores")):
        with pytest.raises(BundleError, match=rf"\(another {what}\)"):
            has(cell(place, text + other))
    for name, what in (("more", "extra_qparams"), ("talk.txt", "dataset")):
        before = (place / name).read_text()
        (place / name).write_text(before + " And another.")
        with pytest.raises(BundleError, match=rf"\(another {what}\)"):
            has(first)
        (place / name).write_text(before)
    for key in ("extra_qparams", "dataset"):
        with pytest.raises(BundleError, match=rf"\(another {key}\)"):
            has(cell(place, "\n".join(line for line in text.splitlines() if not line.startswith(key))))


@pytest.mark.parametrize(
    ("name", "other"),
    [("user/repo", ""), ("user/repo@main", ""), ("user/other", "model"), ("user/repo@v2", "revision")],
)  # fmt: skip
def test_a_model_on_the_hub_is_told_by_its_name(place: Path, name: str, other: str) -> None:
    """Without asking the hub: a sweep that is done has nothing to ask."""
    only = cell(place, "models: {model: one/final, name: Mine}")
    (made,) = convert(OpenedModels().plan(only))
    manifest = json.loads((made / bundle.MANIFEST).read_text())
    manifest["source"]["hub"] = {"repository": "user/repo", "revision": "main", "commit": "0" * 40, "file": ""}
    (made / bundle.MANIFEST).write_text(json.dumps(manifest))
    again = cell(place, f"models: {{model: {name}, name: Mine}}")
    if not other:
        assert has(again)
        return
    with pytest.raises(BundleError, match=rf"\(another {other}\)"):
        has(again)


def test_manifests_of_another_form_are_not_the_cells(place: Path) -> None:
    only = cell(place, "models: one/final")
    (made,) = convert(OpenedModels().plan(only))
    whole = json.loads((made / bundle.MANIFEST).read_text())
    for key in ("toolkit", "hybrid", "source"):
        for value in ([1], {"files": 3}, {"files": [3]}, {"rate": "x", "device": "cpu", "files": [{}]}):
            if key == "source" and not isinstance(value, dict):
                continue
            (made / bundle.MANIFEST).write_text(json.dumps({**whole, key: value}))
            try:
                assert has(only) and key != "source"
            except BundleError as error:
                assert "is not what this sweep makes" in str(error)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models: ~nobody-here/m\nout: o\n", None),
        ("models: m\nloras: ~nobody-here/a\nout: o\n", "~nobody-here/a is not a folder"),
        ("models: m\nout: ~nobody-here/o\n", None),
        ('models: m\nout: "a\\0b"\n', r"'out' cannot be 'a\\x00b'"),
        ('models: "a\\0b"\nout: o\n', r"'models' cannot be 'a\\x00b'"),
    ],
)
def test_places_that_are_none(tmp_path: Path, text: str, sentence: str | None) -> None:
    """The home of nobody is a folder of that name, as in the shell."""
    (tmp_path / "sweep.yaml").write_text(text)
    if sentence:
        with pytest.raises(UsageError, match=sentence):
            sweep_file.load(tmp_path / "sweep.yaml", None)
        return
    (only,) = sweep_file.load(tmp_path / "sweep.yaml", None).cells
    assert only.out in (tmp_path / "o", tmp_path / "~nobody-here" / "o")
    with pytest.raises(UsageError, match="does not exist"):
        OpenedModels().plan(only)


def test_a_place_in_ones_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "sweep.yaml").write_text("models: m\nout: ~/bundles\n")
    assert sweep_file.load(tmp_path / "sweep.yaml", None).cells[0].out == tmp_path / "home" / "bundles"
