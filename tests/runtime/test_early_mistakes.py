"""What is wrong with a call is told before minutes of loading: adapters and templates that are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from rk3588 import bundle as bundles
from rk3588.errors import BundleError, RkError, UsageError
from rkruntime import model as loading
from rkruntime.commands.run import run
from rkruntime.model import Model
from rkruntime.settings import Settings


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, rkllm_library: Path) -> None:
    def load(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr(loading, "RKLLM", load)
    monkeypatch.setenv("RKLLM_LIBRARY", str(rkllm_library))


def without_template(path: Path, folder: Path) -> Path:
    shutil.copytree(path, folder)
    (folder / bundles.TEMPLATE).unlink()
    manifest = json.loads((folder / bundles.MANIFEST).read_text())
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != bundles.TEMPLATE]
    (folder / bundles.MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"lora": "parrot"}, UsageError, "there is no LoRA file parrot, and those of this bundle are: none"),
        ({"lora": "FILE:no name"}, UsageError, "'no name' cannot be an adapter's name"),
        ({"lora": "FILE::loud"}, UsageError, "the scale is 'loud', expected a number"),
        ({"lora": ""}, UsageError, "there is no LoRA file"),
        ({"template": Path("nowhere.jinja")}, RkError, "nowhere.jinja"),
    ],
)
def test_what_is_not_there(
    tiny_bundles: Mapping[str, Path], settings: dict[str, object], kind: type[RkError], said: str
) -> None:
    path = tiny_bundles["w8a8"]
    if "lora" in settings:
        settings = {"lora": str(settings["lora"]).replace("FILE", str(path / bundles.SIM_MODEL))}
    with pytest.raises(kind, match=said):
        Model(path, Settings(**settings), print)  # type: ignore[arg-type]


def test_run_knows_its_template_before_the_model(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    path, bad = tiny_bundles["w8a8"], tmp_path / "bad.jinja"
    bad.write_text("{% for x %}")
    bare = without_template(path, tmp_path / "bare")
    calls = {
        f"{bad} ": [str(path), "hi", "--template", str(bad)],
        "has no chat_template.jinja: give the model's own": [str(bare), "hi"],
    }
    for said, arguments in calls.items():
        done = CliRunner().invoke(run, arguments)
        assert isinstance(done.exception, BundleError) and said in str(done.exception), done.exception
