"""A plan for a model on the hub is of its headers alone: what was planned holds when the weights are here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rk3588 import bundle
from rkconvert.sources.opening import open_source
from tests.convert import test_hub
from tests.convert.test_hub import bundle_of, refused, rkconvert
from tests.hub_server import Hub
from tests.models import tiny_llama

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


def test_a_whole_file_beside_an_index(hub: Hub, home: Path, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "both")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    hub.repositories["user/both"] = folder
    done = rkconvert(hub, home, "user/both", "-o", tmp_path / "a")
    assert bundle_of(done).is_dir() and "model.safetensors is converted, as transformers would" in done.stderr


def test_the_size_of_what_is_not_here_yet(hub: Hub, home: Path, tmp_path: Path) -> None:
    (planned,) = json.loads(rkconvert(hub, home, "user/tiny", "--dry-run", "--json").stdout)["bundles"]
    done = bundle_of(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a"))
    assert planned["bytes"] == pytest.approx(sum(f.stat().st_size for f in done.iterdir()), rel=0.05)


def test_a_password_in_the_address_is_not_shown(hub: Hub, home: Path) -> None:
    address = hub.url
    for hub.url in (address.replace("//", "//me:s3cr3t@"), "http://me:s3cr3t@127.0.0.1:9", "htp:/me:s3cr3t@x"):
        said = refused(rkconvert(hub, home, "user/nothing", "--dry-run"))
        assert "s3cr3t" not in said and "***@" in said
    hub.url = address
