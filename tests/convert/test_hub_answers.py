"""What a hub, or a proxy in its place, answers instead of what was asked for: one sentence, and an end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rkconvert.cli import main
from tests.hub_calls import run_here
from tests.hub_server import COMMIT, Hub, serve
from tests.models import tiny_llama

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(Hub({"user/tiny": tiny_llama(tmp_path / "tiny")})) as running:
        yield running


def refused(hub: Hub, home: Path) -> str:
    done = run_here(main, hub, home, "user/tiny", "-o", home / "out", "--dtype", "fp32")
    assert done.returncode == 1 and not (home / "out").exists(), done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: "), done.stderr
    return last


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_a_download_of_which_nothing_comes_ends(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr("rkconvert.sources.hub_client._PAUSE", 0.0)
    hub.empty, hub.ranges = {WEIGHTS}, ranges
    assert f"MB of {WEIGHTS}: run the same command again" in refused(hub, tmp_path / "home")
    assert len(hub.requests) < 40


@pytest.mark.parametrize(
    "answer",
    [
        *(b"{}", b"[]", b"null", b'"sign in first"', b'{"a":' * 20_000),
        *(json.dumps({"id": "user/tiny", "sha": COMMIT, **more}).encode() for more in (
            {"siblings": [{"size": 3}]}, {"siblings": [{"rfilename": 3}]}, {"siblings": {"a": 1}}, {"siblings": [None]},
            {"siblings": [{"rfilename": "config.json", "size": "x"}]},
            {"siblings": [{"rfilename": "config.json", "size": -1}]}, {"sha": None}, {"sha": "../.."}, {"sha": [1]},
        )),
    ],
    ids=lambda answer: str(answer[:40]),
)  # fmt: skip
def test_what_is_no_description_of_a_repository(hub: Hub, tmp_path: Path, answer: bytes) -> None:
    hub.answer = answer
    assert f"{hub.url} answers, and not as a hub does, when asked for user/tiny" in refused(hub, tmp_path / "home")
