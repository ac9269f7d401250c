"""The binding over the simulated runtime of each release, with a tiny model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rk3588.errors import RuntimeFailure, UsageError
from rk3588.hostlib import SimModel
from rkruntime.binding import RKLLM

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


@pytest.fixture(scope="module", params=["1.1.1", "1.2.0", "1.2.3", "1.3.1"])
def library(request: pytest.FixtureRequest, runtimes: Mapping[str, Path]) -> Path:
    return runtimes[request.param]


@pytest.fixture
def llm(model: Path, library: Path) -> Iterator[RKLLM]:
    greedy = {"top_k": 1, "repeat_penalty": 1.0}
    with RKLLM(model, library=library, max_context_len=128, max_new_tokens=16, **greedy) as llm:  # type: ignore[arg-type]
        yield llm


@pytest.fixture(scope="module")
def expected(model: Path, rkllm_library: Path) -> list[int]:
    """To PROMPT, greedily, from 1.1.1."""
    with RKLLM(model, library=rkllm_library, max_context_len=128, top_k=1, repeat_penalty=1.0) as llm:
        return [token.id for token in llm.generate(PROMPT, max_tokens=16)]


def test_the_answer_is_the_same_on_every_release(llm: RKLLM, library: Path, expected: list[int]) -> None:
    """Whatever template the release would put around a text, and whatever it would keep of the run before."""
    assert llm.version == (library.parent.name if llm.version != "1.1.1" else "1.1.1")
    for _ in range(2):
        run = llm.generate(PROMPT)
        assert [token.id for token in run] == expected
    assert (run.perf is not None) == llm.features.perf
    if run.perf is not None:
        assert run.perf.generate_tokens >= len(expected) - 1


def test_sampling_of_a_run_is_that_of_a_load(llm: RKLLM, model: Path, library: Path) -> None:
    """Greedily, with a penalty that changes what is the likeliest: what is drawn differs by the seed."""
    other = {"top_k": 1, "repeat_penalty": 3.0}
    with RKLLM(model, library=library, max_context_len=128, max_new_tokens=16, **other) as loaded:  # type: ignore[arg-type]
        wanted = [token.id for token in loaded.generate(PROMPT)]
    if not llm.features.per_run_sampling:
        with pytest.raises(UsageError, match="takes top_k only when it loads a model"):
            llm.generate(PROMPT, sampling=other)
        return
    before = [token.id for token in llm.generate(PROMPT)]
    assert [token.id for token in llm.generate(PROMPT, sampling=other)] == wanted != before
    assert [token.id for token in llm.generate(PROMPT)] == before


def test_hidden_states(llm: RKLLM, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By state in 1.1, by the run's mode later; and an answer after them is an answer. 1.3 is told that they may go."""
    found = llm.hidden_states([3, 4, 5])
    with SimModel(model, threads=1) as opened:
        assert (found.tokens, found.size) == (3, opened.info.hidden)
    assert any(found.values) and list(llm.generate(PROMPT))
    llm.close()
    assert ("stayed until now" in capfd.readouterr().err) == (llm.version[:3] == "1.2")


def test_text_and_its_ids_have_the_same_answer(llm: RKLLM, model: Path) -> None:
    with SimModel(model, vocab_only=True) as vocabulary:
        by_ids = list(llm.generate(vocabulary.tokenise(PROMPT)))
        assert by_ids == list(llm.generate(PROMPT))
        assert 0 < len(by_ids) <= 16
        said = vocabulary.detokenise([token.id for token in by_ids]).decode("utf-8", "replace")
    # A token may be the byte NUL, which no C string can carry.
    assert "".join(token.text for token in by_ids) == said.replace("\0", "")


def test_a_run_after_an_aborted_one_is_a_run_like_any(llm: RKLLM) -> None:
    """State that an abort leaves behind: a flag still set, a cache half full."""
    whole = list(llm.generate(PROMPT))
    for tokens in (0, 1, 3):
        with llm.generate(PROMPT) as cut:
            assert [next(cut) for _ in range(tokens)] == whole[:tokens]
        assert list(llm.generate(PROMPT)) == whole


def test_its_errors_come_as_exceptions(llm: RKLLM) -> None:
    for prompt in ([1 << 20], "many words " * 200):
        with pytest.raises(RuntimeFailure, match=r"ended the run with an error|rkllm_run failed with -1"):
            list(llm.generate(prompt))
    assert list(llm.generate(PROMPT))


def test_a_file_that_is_no_model(tmp_path: Path, model: Path, library: Path) -> None:
    for name, content in {"text": b"hello", "half": model.read_bytes()[:5000]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RuntimeFailure, match=f"cannot load .*{name}: rkllm_init failed"):
            RKLLM(tmp_path / name, library=library)
