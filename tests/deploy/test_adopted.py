"""The walk of README's "I own a board and a .rkllm", on a simulated board without root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588 import bundle
from rkconvert.adoption.adopt import Request, prepare
from rkconvert.adoption.writing import write
from rkconvert.build import no_progress
from tests import deploying, simulated_board
from tests.deploying import Deployer
from tests.rkllm_files import base, rkllm
from tests.simulated_board import key_of, prefix_of

pytestmark = pytest.mark.usefixtures("board_watch")
daemon, board, port = simulated_board.daemon, simulated_board.board, simulated_board.port


@pytest.fixture
def library(tmp_path: Path, rkllm_library: Path) -> Path:
    """What passes for Rockchip's 1.1.1; nothing loads it here, for the stand-in daemon answers."""
    path = tmp_path / "librkllmrt.so"
    path.write_bytes(rkllm_library.read_bytes()[:64] + b"rkllm-runtime version: 1.1.1\0rkllm_init\0")
    return path


def test_five_commands(board: Deployer, tmp_path: Path, port: int, library: Path) -> None:
    model = base(tmp_path / "base")
    file = rkllm(tmp_path / "Tiny-rk3588-w8a8-opt-1-hybrid-ratio-0.0.rkllm", model, toolkit="1.1.4")
    path = board.run("adopt", file, "--base", model, "-o", tmp_path / "out").stdout.strip()
    assert path == str(tmp_path / "out" / "Tiny-rk3588-w8a8")
    bundle.verify(bundle.read(path))
    (predicted,) = json.loads(board.run("predict", path, "--board", "rock-5b", "--json").stdout)
    assert (predicted["dtype"], predicted["fits"]["4"]) == ("w8a8", True)
    said = board.run("doctor", "attic", "--bundle", path, "--runtime", library).stdout
    assert "a model of rkllm-toolkit 1.1.4 under librkllmrt 1.1.1: seen to load" in said
    words = ["deploy", path, "--board", "attic", "--daemon", board.daemon, "--port", port, "--runtime", library]
    (row,) = json.loads(board.run(*words, "--json").stdout)
    assert row["healthy"]
    sent = prefix_of(board) / "releases" / row["release"] / "bundle"
    assert (sent / "model.rkllm").read_bytes() == file.read_bytes()
    assert (sent / "chat_template.jinja").is_file() and (sent / "tokenizer.gguf").is_file()
    assert deploying.answer_of(port, key_of(board)) == "Tiny here"


def test_a_model_that_the_runtime_cannot_load_is_not_sent(
    board: Deployer, tmp_path: Path, port: int, library: Path
) -> None:
    model = base(tmp_path / "base")
    file = rkllm(tmp_path / "Tiny-rk3588-w8a8.rkllm", model, toolkit="1.2.3")
    adoption = prepare(Request(str(file), base=str(model), out=tmp_path / "out"))
    assert any("for librkllmrt 1.2.3 or 1.3.1" in note for note in adoption.notes)
    words = ["deploy", write(adoption, no_progress), "--board", "attic", "--daemon", board.daemon, "--port", port]
    said = board.run(*words, "--runtime", library, code=1).stderr
    assert "a model of rkllm-toolkit 1.2.3 under librkllmrt 1.1.1: a runtime loads no model of a newer toolkit" in said
    assert not (prefix_of(board) / "incoming").exists()
