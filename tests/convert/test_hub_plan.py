"""A plan for a model on the hub is of its headers alone: what was planned holds when the weights are here."""

from __future__ import annotations

from pathlib import Path

from rk3588 import bundle
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
