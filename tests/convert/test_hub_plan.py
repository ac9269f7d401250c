"""A plan for a model on the hub is of its headers alone: what was planned holds when the weights are here."""

from __future__ import annotations

from pathlib import Path

from rk3588 import bundle
from rkconvert.sources.opening import open_source
from tests.convert import test_hub
from tests.convert.test_hub import rkconvert
from tests.hub_server import Hub

repositories, hub, home = test_hub.repositories, test_hub.hub, test_hub.home


def test_a_template_of_ones_own_and_a_rotation(hub: Hub, home: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for message in messages %}<{{ message['content'] }}>{% endfor %}")
    done = rkconvert(hub, home, "user/tiny", "-o", tmp_path / "out", "--chat-template", template, "--rotate")
    assert done.returncode == 0, done.stderr
    found = bundle.read(tmp_path / "out" / "tiny-rk3588-w8a8-rotated")
    assert found.chat_template == template.read_text()
    assert found.manifest["rotation"]["basis"].startswith("hadamard-")


def test_a_folder_of_a_model_on_the_hub(hub: Hub, home: Path, tmp_path: Path) -> None:
    """And of a GGUF file there, whose config.json is made before its weights are asked for."""
    for model in ("user/tiny", "user/one"):
        folder = tmp_path / model.split("/")[1]
        done = rkconvert(hub, home, model, "--rotate", "--emit-hf", folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{folder}\n"
        assert open_source(folder).rotation["kind"] == "hadamard"
        assert f"base_model: {model}\n" in (folder / "README.md").read_text()
