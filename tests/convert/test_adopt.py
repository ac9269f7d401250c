"""``rk3588 adopt``: a bundle of a .rkllm that somebody else made, from here and from a small hub on 127.0.0.1."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rk3588 import bundle, compatibility
from rk3588.cli import main
from rkconvert.adoption import adopt as adopting
from rkconvert.adoption.claims import Claim
from rkconvert.sources.opening import open_checkpoint
from tests import models
from tests.core.test_cli import rk3588
from tests.fakes import fake_rkllm
from tests.hub_calls import Done, run_here
from tests.hub_server import COMMIT, Hub, serve
from tests.rkllm_files import base, rkllm

NAME = "Tiny-rk3588-w8a8-opt-0-hybrid-ratio-0.5.rkllm"
REPOSITORY = "maker/Tiny-RK3588-1.1.4"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, the model; made/, a repository of .rkllm files; whole/, one that has the tokenizer, too."""
    root = tmp_path_factory.mktemp("adopt")
    model = base(root / "base")
    rkllm(root / "made" / NAME, model)
    rkllm(root / "made" / "Tiny-rk3588-w8a8_g128-opt-0-hybrid-ratio-0.5.rkllm", model, dtype="w8a8_g128")
    (root / "made" / "README.md").write_text("---\nbase_model: user/base\n---\nA card.\n")
    shutil.copytree(model, root / "whole", ignore=shutil.ignore_patterns("*.safetensors"))
    rkllm(root / "whole" / "m_w8a8_g128_rk3588.rkllm", model, dtype="w8a8_g128", toolkit="1.2.1")
    (root / "whole" / "LICENSE").write_text("Apache License, Version 2.0\n")
    return root


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    names = {REPOSITORY: "made", "user/base": "base", "maker/m_w8a8_g128_rk3588.rkllm": "whole"}
    with serve(Hub({name: root / folder for name, folder in names.items()})) as running:
        yield running


def adopt(hub: Hub, home: Path, *words: str | Path) -> Done:
    return run_here(main, hub, home, "adopt", *words)


def adopted(done: Done) -> bundle.Bundle:
    assert done.returncode == 0, done.stderr
    found = bundle.read(Path(done.stdout.rstrip("\n")))
    bundle.verify(found)
    return found


def sentence(done: Done, code: int = 2) -> str:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_a_file_here_with_a_model_here(hub: Hub, root: Path, tmp_path: Path) -> None:
    done = adopt(hub, tmp_path / "home", root / "made" / NAME, "--base", root / "base", "-o", tmp_path / "out")
    found = adopted(done)
    assert found.path == tmp_path / "out" / "Tiny-rk3588-w8a8-opt0-hybrid0.5"
    assert (found.name, found.dtype, found.context_length) == ("Tiny", "w8a8", 512)
    assert found.npu_model is not None and found.npu_model.read_bytes() == (root / "made" / NAME).read_bytes()
    assert found.chat_template == models.CHATML
    assert (found.path / "tokenizer.json").read_bytes() == (root / "base" / "tokenizer.json").read_bytes()
    assert found.manifest["adopted"]["file"] == NAME
    assert found.manifest["adopted"]["claims"]["hybrid_rate"] == {"value": 0.5, "by": "the file's name"}
    assert found.manifest["adopted"]["unsaid"] == ["toolkit"]
    assert "toolkit" not in found.manifest  # which would say that rkconvert drove it
    assert compatibility.toolkit_of(found) is None
    assert "nothing says which rkllm-toolkit wrote it" in done.stderr
    assert hub.requests == []
    card = (found.path / "README.md").read_text()
    assert "Somebody else's conversion of base" in card and "hybrid rate 0.5 (by the file's name)" in card


def test_a_file_on_the_hub_with_a_model_on_the_hub(hub: Hub, root: Path, tmp_path: Path) -> None:
    words = (f"hf:{REPOSITORY}:{NAME}", "--base", "user/base", "-o", tmp_path / "out")
    found = adopted(adopt(hub, tmp_path / "home", *words))
    adopted_as = found.manifest["adopted"]
    assert adopted_as["hub"] == {"repository": REPOSITORY, "revision": "main", "commit": COMMIT, "file": NAME}
    assert adopted_as["claims"]["toolkit"] == {"value": "1.1.4", "by": "the repository's name"}
    assert compatibility.toolkit_of(found) == ("1.1.4", True)
    assert found.manifest["source"]["hub"]["repository"] == "user/base"
    assert found.npu_model is not None and found.npu_model.read_bytes() == (root / "made" / NAME).read_bytes()
    assert not any(file.endswith(".safetensors") for file in hub.asked("GET"))  # no weights of the base
    assert found.npu_model.stat().st_nlink == 2  # that in the hub's cache is the other: no gigabytes twice


def test_what_broke_off_goes_on(hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rkconvert.sources.hub_client._PAUSE", 0.0)
    size = (root / "made" / NAME).stat().st_size
    hub.cut_after[NAME] = [1_000_000]
    found = adopted(adopt(hub, tmp_path / "home", f"hf:{REPOSITORY}:{NAME}", "--base", "user/base", "-o", tmp_path))
    assert found.npu_model is not None and found.npu_model.stat().st_size == size
    assert hub.bodies(NAME)[-2:] == [f"bytes=0-{size - 1}", f"bytes=1000000-{size - 1}"]


def test_a_cache_on_another_disk(hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("rkconvert.adoption.rkllm_source.os.link", refuse)
    found = adopted(adopt(hub, tmp_path / "home", f"hf:{REPOSITORY}:{NAME}", "--base", "user/base", "-o", tmp_path))
    assert found.npu_model is not None and found.npu_model.stat().st_nlink == 1
    assert found.npu_model.read_bytes() == (root / "made" / NAME).read_bytes()


def test_a_repository_that_has_all_of_it(hub: Hub, tmp_path: Path) -> None:
    """Its own tokenizer, template and licence; its name ends as a file's does, and its file says who wrote it."""
    done = adopt(hub, tmp_path / "home", "hf:maker/m_w8a8_g128_rk3588.rkllm", "-o", tmp_path, "--json")
    told = json.loads(done.stdout)
    found = bundle.read(told["path"])
    assert found.path.name == "m-rk3588-w8a8_g128"
    assert (found.path / "LICENSE").is_file() and found.chat_template
    assert compatibility.toolkit_of(found) == ("1.2.1", False)
    assert told["claims"]["toolkit"] == {"value": "1.2.1", "by": "the file's own text"}
    assert any("for librkllmrt 1.2.1 to 1.2.3 or 1.3.1" in note for note in told["notes"])


def test_a_folder_that_has_all_of_it(hub: Hub, root: Path, tmp_path: Path) -> None:
    done = adopt(hub, tmp_path / "home", root / "whole" / "m_w8a8_g128_rk3588.rkllm", "-o", tmp_path, "--name", "Mine")
    assert adopted(done).path == tmp_path / "Mine-rk3588-w8a8_g128"


REFUSED = {
    "several files": (f"hf:{REPOSITORY}", f"has 2 .rkllm files, name one as hf:{REPOSITORY}:FILE: Tiny-rk3588-w8a8"),
    "no such file": (f"hf:{REPOSITORY}:x.rkllm", f"has no file x.rkllm; its .rkllm files are: {NAME}, Tiny-rk3588"),
    "no .rkllm at all": ("hf:user/base", "user/base has no .rkllm file: see http"),
    "no base": (f"hf:{REPOSITORY}:{NAME}", "which model it was made from (its repository's card names user/base)"),
    "no name": ("hf:maker", "hf:maker names nothing on the hub: give hf:USER/REPO"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_has_not(hub: Hub, tmp_path: Path, case: str) -> None:
    given, told = REFUSED[case]
    assert told in sentence(adopt(hub, tmp_path / "home", given, "-o", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


KINDS = {
    "empty": (b"", "is empty: the download that should have filled it failed"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "no .rkllm but a pointer"),
    "a web page": (b"\n <!DOCTYPE html>\n<html>" + bytes(2 << 20), "is no .rkllm but a web page"),
    "an answer of the hub": (b"Entry not found", "has 15 bytes ('Entry not found'), which is no language model"),
    "a .rknn": (b"RKNN" + bytes(2 << 20), "is no .rkllm but a .rknn, which is for Rockchip's other runtime"),
    "a GGUF file": (b"GGUF" + bytes(2 << 20), "is no .rkllm but a GGUF file"),
    "safetensors": ((9).to_bytes(8, "little") + b'{"a":1}' + bytes(2 << 20), "is no .rkllm but a safetensors file"),
    "nearly nothing": (bytes(1000), "has 1000 bytes, which is no language model: a download that broke off"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_no_model(hub: Hub, root: Path, tmp_path: Path, kind: str) -> None:
    data, told = KINDS[kind]
    (tmp_path / "made").mkdir()
    for place in (tmp_path / "made" / "x-rk3588-w8a8.rkllm", tmp_path / "x-rk3588-w8a8.rkllm"):
        place.write_bytes(data)
    hub.repositories["maker/wrong"] = tmp_path / "made"
    for given in (tmp_path / "x-rk3588-w8a8.rkllm", "hf:maker/wrong"):
        done = adopt(hub, tmp_path / "home", given, "--base", root / "base", "-o", tmp_path / "out")
        assert told in sentence(done)
    assert not (tmp_path / "out").exists()
    ranges = [asked.removeprefix("bytes=").split("-") for asked in hub.bodies("x-rk3588-w8a8.rkllm")]
    assert sum(int(last) - int(first) + 1 for first, last in ranges) < 1200  # of a file of any size, its two ends


WRONG = {
    "another chip": ("Tiny-rk3576-w8a8.rkllm", {}, [], "is for the RK3576, by the file's name: an RK3588"),
    "another dtype": ("Tiny-rk3588-w4a16_g64.rkllm", {}, [], "is w4a16_g64, by the file's name, which is the RK357"),
    "no dtype": ("Tiny-rk3588.rkllm", {"dtype": "w8a8_g128"}, [], "--dtype; its size is nearest to that of w8a8_g12"),
    "too large": ("Tiny-rk3588-w8a8.rkllm", {"share": 1.5}, [], "has 2.9 MB, where base as w8a8 has about 1.9: it"),
    "cut off": ("Tiny-rk3588-w8a8.rkllm", {"share": 0.8}, [], "or is cut off; --force adopts it all the same"),
    "a LoRA": ("Tiny_lora.rkllm", {}, [], "is by its name a LoRA of rkllm-toolkit, and no model"),
    "no such dtype": ("Tiny.rkllm", {}, ["--dtype", "w4a16"], "--dtype w4a16 is the RK3576's: an RK3588 runs w8a8, w8"),
    "no such toolkit": ("Tiny.rkllm", {}, ["--toolkit-version", "new"], "--toolkit-version 'new': give a release of"),
    "a toolkit with more": (
        "Tiny.rkllm", {}, ["--toolkit-version", "1.1.4\nx"], "--toolkit-version '1.1.4\\nx': give a release of"
    ),
    "a toolkit without end": ("Tiny.rkllm", {}, ["--toolkit-version", "1." + "9" * 5000], "9': give a release of"),
    "no such base": ("Tiny-rk3588-w8a8.rkllm", {}, ["--base", "nowhere/"], "--base nowhere/ does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit(hub: Hub, root: Path, tmp_path: Path, case: str) -> None:
    name, made, words, told = WRONG[case]
    file = rkllm(tmp_path / name, root / "base", **made)  # type: ignore[arg-type]
    done = adopt(hub, tmp_path / "home", file, "--base", root / "base", "-o", tmp_path / "out", *words)
    assert told in sentence(done)
    assert not (tmp_path / "out").exists()


def test_force_adopts_what_does_not_fit_and_says_so(hub: Hub, root: Path, tmp_path: Path) -> None:
    file = rkllm(tmp_path / "Tiny-rk3588-w8a8.rkllm", root / "base", share=1.5)
    done = adopt(hub, tmp_path / "home", file, "--base", root / "base", "-o", tmp_path, "--force")
    assert adopted(done).name == "Tiny"
    assert "Note: forced, though " in done.stderr and "is of another model (--base)" in done.stderr


def test_a_toolkit_that_did_not_know_the_model_yet(hub: Hub, root: Path, tmp_path: Path) -> None:
    file = rkllm(tmp_path / "Tiny-rk3588-w8a8-1.1.4.rkllm", root / "base")
    newer = shutil.copytree(root / "base", tmp_path / "newer")
    settings = json.loads((newer / "config.json").read_text())
    (newer / "config.json").write_text(
        json.dumps({**settings, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})
    )
    words = (file, "--base", newer, "-o", tmp_path / "out")
    told = sentence(adopt(hub, tmp_path / "home", *words))
    assert "rkllm-toolkit takes Qwen3 from 1.2.1 on, and this is of 1.1.4 (by the file's name)" in told
    found = adopted(adopt(hub, tmp_path / "home", *words, "--toolkit-version", "1.2.3"))
    assert compatibility.toolkit_of(found) == ("1.2.3", True)


def test_a_toolkit_that_did_not_know_the_model_in_gguf_yet(tmp_path: Path) -> None:
    gguf = models.tiny_gguf(tmp_path / "Tiny.gguf", dtype="F16")
    base_ = replace(open_checkpoint(gguf), architecture="qwen3")
    claims = {"toolkit": Claim("1.1.4", "its name")}
    (doubt,) = adopting._toolkit_doubts(base_, claims)
    assert doubt.startswith("rkllm-toolkit takes Qwen3 from 1.2.1 on, and this is of 1.1.4 (by its name)")
    assert adopting._toolkit_doubts(base_, {"toolkit": Claim("1.2.1", "its name")}) == []


def test_a_gguf_file_as_base_and_a_file_that_is_just_called_model(hub: Hub, root: Path, tmp_path: Path) -> None:
    file = rkllm(tmp_path / "model.rkllm", root / "base")
    gguf = models.tiny_gguf(tmp_path / "Other.F16.gguf", dtype="F16")
    done = adopt(hub, tmp_path / "home", file, "--base", gguf, "-o", tmp_path / "out", "--dtype", "w8a8", "--force")
    found = adopted(done)
    assert (found.name, found.manifest["source"]["kind"]) == ("Other", "gguf")
    assert found.file(bundle.VOCABULARY) and found.chat_template
    assert "nothing says which chip model.rkllm is for: it is taken to be the RK3588" in done.stderr


def test_a_tokenizer_that_is_not_known_here(hub: Hub, root: Path, tmp_path: Path) -> None:
    """Prompts go to the runtime as text; there is a template all the same."""
    odd = shutil.copytree(root / "base", tmp_path / "odd")
    tokenizer = json.loads((odd / "tokenizer.json").read_text())
    (odd / "tokenizer.json").write_text(json.dumps({**tokenizer, "model": {**tokenizer["model"], "type": "Unigram"}}))
    done = adopt(hub, tmp_path / "home", root / "made" / NAME, "--base", odd, "-o", tmp_path)
    found = adopted(done)
    assert found.file(bundle.VOCABULARY) is None and found.chat_template == models.CHATML
    assert "no tokenizer.gguf is written, so prompts are sent as text and not counted" in done.stderr


def test_places_that_are_none(hub: Hub, root: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    os.mkfifo(tmp_path / "pipe.rkllm")
    (tmp_path / "gone.rkllm").symlink_to("nowhere")
    assert "there is no x.rkllm: give a .rkllm file, or hf:USER/REPO:FILE" in sentence(adopt(hub, home, "x.rkllm"))
    assert f"is a folder: give one of its files: {NAME}" in sentence(adopt(hub, home, root / "made"))
    assert "is a FIFO, where a file is expected" in sentence(adopt(hub, home, tmp_path / "pipe.rkllm"), code=1)
    assert "is a link that leads nowhere" in sentence(adopt(hub, home, tmp_path / "gone.rkllm"), code=1)
    for _ in range(2):
        done = adopt(hub, home, root / "made" / NAME, "--base", root / "base", "-o", tmp_path / "out")
    assert "exists already: remove it, choose another -o, or give --overwrite" in sentence(done)


def test_it_runs_as_any_other(root: Path, tmp_path: Path, hub: Hub) -> None:
    """Over a librkllmrt whose script is the model: its tokens, its template, and an answer."""
    library = fake_rkllm(tmp_path)
    file = rkllm(tmp_path / "Tiny-rk3588-w8a8.rkllm", root / "base")
    with file.open("r+b") as model:
        model.write(b"banner\ntoken 1 48\ntoken 2 6921\nempty 2\n\0")  # "Hi!"
    found = adopted(adopt(hub, tmp_path / "home", file, "--base", root / "base", "-o", tmp_path / "out"))
    done = rk3588("run", found.path, "hello", library=library)
    assert (done.returncode, done.stdout) == (0, "Hi!\n"), done.stderr
    assert done.stderr.startswith(f"On the NPU: model.rkllm with {library}\n")


def test_without_the_converter_one_sentence_says_what_to_install(
    hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rkconvert.adoption.commands", None)
    told = sentence(adopt(hub, tmp_path / "home", root / "made" / NAME))
    assert told.startswith("Error: a .rkllm is adopted by rkconvert: pip install 'rk3588[convert]' (there is no rkconv")
