"""The binding over scripted libraries of several releases: what only some of them can do, and the right structs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rk3588.errors import LibraryError, RuntimeFailure, UsageError
from rkruntime import loader
from rkruntime.abi import Perf
from rkruntime.binding import RKLLM
from tests.fakes import fake_rkllm, journal


def test_a_run_with_sampling_of_its_own(tmp_path: Path) -> None:
    """What is left out is what the model was loaded with, and holds again for the next run."""
    library = fake_rkllm(tmp_path, release="1.3.1")
    (tmp_path / "model").write_text("token 1 61\nempty 2\n")
    with RKLLM(tmp_path / "model", library=library, top_p=0.5, frequency_penalty=0.25) as llm:
        for sampling in ({"temperature": 1.5, "top_k": 7, "presence_penalty": -1.0, "top_p": None}, None):
            assert [t.text for t in llm.generate("x", sampling=sampling)] == ["a"]
        with pytest.raises(UsageError, match="there is no sampling parameter 'warmth': there are top_k, top_p, "):
            llm.generate("x", sampling={"warmth": 1.0})
    assert journal(library)[2:5] == [
        "sampling k=7 p=0.5 t=1.5 repeat=1.1 frequency=0.25 presence=-1 mirostat=0 tau=0 eta=0",
        "run text x mode=0 lora=0 cache=0",
        "run text x mode=0 lora=0 cache=0",
    ]


def test_a_release_that_takes_no_sampling_with_a_run_says_so(tmp_path: Path) -> None:
    """Sampling that is dropped without a word."""
    (tmp_path / "model").write_text("empty 2\n")
    with RKLLM(tmp_path / "model", library=fake_rkllm(tmp_path)) as llm:
        with pytest.raises(UsageError, match=r"librkllmrt 1\.1\.1 takes top_p only when it loads a model"):
            llm.generate("x", sampling={"temperature": None, "top_p": 0.5})
        assert list(llm.generate("x", sampling={"top_p": None})) == []


@pytest.mark.parametrize("release", ["1.2.0", "1.2.3", "1.3.1"])
def test_texts_are_not_wrapped_by_the_library(tmp_path: Path, release: str) -> None:
    """A template around the template: the prompt of another program reached the model with ours inside."""
    library = fake_rkllm(tmp_path, release=release)
    (tmp_path / "model").write_text("empty 2\n")
    with RKLLM(tmp_path / "model", library=library) as llm:
        assert list(llm.generate("x")) == []
    assert journal(library)[1:] == [
        "template '' '' ''", "run text x mode=0 lora=0 cache=0", "destroy running=0 handle=1",
    ]  # fmt: skip
    (tmp_path / "model").write_text("notemplate\n")
    with pytest.raises(RuntimeFailure, match="rkllm_set_chat_template failed with -1"):
        RKLLM(tmp_path / "model", library=library)
    assert journal(library)[-1] == "destroy running=0 handle=1"


def test_figures_of_the_library_itself(tmp_path: Path) -> None:
    """They come with FINISH; 1.1 has none."""
    (tmp_path / "model").write_text("token 1 61\nempty 2\n")
    found: dict[str, Perf | None] = {}
    for release in ("1.1.1", "1.2.0", "1.2.3", "1.3.1"):
        (tmp_path / release).mkdir()
        with RKLLM(tmp_path / "model", library=fake_rkllm(tmp_path / release, release=release)) as llm:
            run = llm.generate("x")
            assert len(list(run)) == 1
            found[llm.version] = run.perf
    (tmp_path / "endless").write_text("forever 7 61 5\nempty 2\n")
    with RKLLM(tmp_path / "endless", library=tmp_path / "1.3.1" / "librkllmrt.so") as llm, llm.generate("x") as run:
        next(run)
        assert run.perf is None  # there are none yet
    figures = Perf(12.5, 6, 100.0, 2, 512.0)
    assert found == {"1.1.1": None, "1.2.0": None, "1.2.3": figures, "1.3.1": figures}


def test_a_library_that_is_replaced_while_it_is_loaded(tmp_path: Path) -> None:
    """The dynamic loader gives the old one again by its name, and the new one's structs went to it."""
    loader.load(fake_rkllm(tmp_path, release="1.2.3"))
    loader.load(tmp_path / "librkllmrt.so")
    (tmp_path / "librkllmrt.so").unlink()
    fake_rkllm(tmp_path, release="1.3.1")
    with pytest.raises(LibraryError, match=r"librkllmrt.so was replaced since this process loaded it: start"):
        loader.load(tmp_path / "librkllmrt.so")
