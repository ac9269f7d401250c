"""What is wrong with the daemon's settings is told when it is started, and not by one failed load after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rk3588 import hostlib
from rk3588.errors import RkError, UsageError
from rkruntime.daemon import config, main, server
from rkruntime.settings import Settings


class Ended:
    """A daemon that is told to end at once."""

    def __init__(self, *given: Any) -> None:
        for listener in given[-1]:
            listener.close()

    async def run(self) -> int:
        return 0


@pytest.fixture
def bundle(tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, rkllm_library: Path) -> Path:
    monkeypatch.setattr(server, "_Daemon", Ended)
    monkeypatch.setenv("RKLLM_LIBRARY", str(rkllm_library))
    return tiny_bundles["w8a8"]


def start(bundle: Path, **given: Any) -> int:
    return main.serve(config.make(None, {"bundle": bundle, "listen": config.Address("127.0.0.1", 0), **given}))


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("template=/nowhere.jinja", 2, "there is no template /nowhere.jinja: give the path of a Jinja file"),
        ("template=FILE", 1, "is not a Jinja template that can be used"),
        ("sim_library=FILE", 1, "is no librksim.so for this machine"),
        ("sim_library=LIBRARY", 1, "is no librksim.so for this machine"),
        ("library=FILE", 1, "is not a shared library"),
        ("state_dir=FILE", 2, "is no folder"),
        ("context=4", 2, "a context of 4 tokens holds no prompt: ask for more than 4"),
    ],
)
def test_a_setting_that_no_load_could_use(
    bundle: Path, tmp_path: Path, rkllm_library: Path, name: str, code: int, said: str
) -> None:
    file = tmp_path / "readme.md"
    file.write_text("# {% for x %}")
    name, _, text = name.partition("=")
    value: Any = {"FILE": file, "LIBRARY": rkllm_library}.get(text, int(text) if text.isdigit() else Path(text))
    if text == "LIBRARY" and b"rksim_version" in rkllm_library.read_bytes():
        pytest.skip("this runtime exports what librksim does")
    with pytest.raises(RkError) as raised:
        start(bundle, **{name: value})
    assert (raised.value.exit_code, said in str(raised.value)) == (code, True), raised.value


def test_the_library_of_the_environment_is_judged_too(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("x")
    monkeypatch.setenv("RKSIM_LIBRARY", str(tmp_path / "text"))
    with pytest.raises(RkError, match=r"is no librksim\.so for this machine"):
        start(bundle)


def test_what_can_be_used_is_taken(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    (tmp_path / "state").mkdir()
    given = {"template": tmp_path / "own.jinja", "context": 5, "sim_library": hostlib.find()}
    for folder in ("state", "none yet"):
        assert start(bundle, state_dir=tmp_path / folder, **given) == 0


def test_a_library_may_be_named_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file in the folder that one is in; the dynamic loader would look elsewhere."""
    (tmp_path / "mine.so").symlink_to(hostlib.find())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RKSIM_LIBRARY", "mine.so")
    assert hostlib.library.__wrapped__().rksim_version() and "/" not in os.environ["RKSIM_LIBRARY"]


@pytest.mark.parametrize("name", ["context", "max_tokens", "top_k"])
def test_whole_numbers_fit_the_structs_of_the_library(name: str) -> None:
    from rkruntime.settings import parse

    assert parse(name, str(2**31 - 1)) == 2**31 - 1
    with pytest.raises(UsageError, match="2147483647"):
        parse(name, str(2**31))
    with pytest.raises(UsageError, match="holds no prompt"):
        Settings.of({"context": 4})
