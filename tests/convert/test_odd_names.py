"""Names and texts that UTF-8 cannot write: files of other systems, halves of surrogate pairs out of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from rk3588 import bundle
from rk3588.cli import main as rk3588
from rkconvert import calibration
from rkconvert.cli import main as rkconvert
from rkconvert.sources.opening import open_source
from tests import models
from tests.rkllm_files import base, rkllm

ODD = os.fsdecode(b"m\xff\xfe")


def run(main: Callable[[], NoReturn], *words: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("dry", [[], ["--dry-run"], ["--dry-run", "--json"]])
def test_a_folder_that_is_called_so(tmp_path: Path, dry: list[str]) -> None:
    folder = models.tiny_llama(tmp_path / "model").rename(tmp_path / ODD)
    assert run(rkconvert, folder, "-o", tmp_path / "out", "--name", "ok", "--dtype", "w8a8", *dry) == 0
    if not dry:
        found = bundle.read(tmp_path / "out" / "ok-rk3588-w8a8")
        bundle.verify(found)
        assert found.manifest["source"]["name"] == "m??"


def test_a_licence_that_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = models.tiny_llama(tmp_path / "model")
    (folder / f"LICENSE.{ODD}").write_text("text")
    assert run(rkconvert, folder, "-o", tmp_path / "out", "--dtype", "w8a8") == 1
    assert "has a name that is not UTF-8: give it another one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_rkllm_that_is_called_so(tmp_path: Path) -> None:
    model = base(tmp_path / "base")
    file = rkllm(tmp_path / f"{ODD}-w8a8.rkllm", model)
    assert run(rk3588, "adopt", file, "--base", model, "-o", tmp_path / "out") == 0
    (folder,) = (tmp_path / "out").iterdir()
    bundle.verify(bundle.read(folder))


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb", "\ud83d \ude00"])
def test_halves_of_pairs_in_a_models_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    folder = models.tiny_llama(tmp_path / "model")
    for name, key in (("tokenizer_config.json", "chat_template"), ("generation_config.json", "transformers_version")):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**said, key: value}))
    assert run(rkconvert, folder, "-o", tmp_path / "out", "--dtype", "w8a8") in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


def test_halves_of_pairs_in_a_dataset(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"prompt": "a\ud83d", "answer": "\ude00b"}]))
    data = calibration.load(file, open_source(models.tiny_llama(tmp_path / "model")).vocabulary)
    assert "a?" in data.text() and "?b" in data.text()
    assert data.facts()["samples"] == 1
