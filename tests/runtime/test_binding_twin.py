"""The binding over the simulated runtime itself, with a tiny model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rk3588.errors import RuntimeFailure
from rk3588.hostlib import SimModel
from rkruntime.binding import RKLLM

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


@pytest.fixture
def llm(model: Path, rkllm_library: Path) -> Iterator[RKLLM]:
    greedy = {"top_k": 1, "repeat_penalty": 1.0}
    with RKLLM(model, library=rkllm_library, max_context_len=128, max_new_tokens=16, **greedy) as llm:  # type: ignore[arg-type]
        yield llm


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
        with pytest.raises(RuntimeFailure, match="ended the run with an error"):
            list(llm.generate(prompt))
    assert list(llm.generate(PROMPT))


def test_a_file_that_is_no_model(tmp_path: Path, model: Path, rkllm_library: Path) -> None:
    for name, content in {"text": b"hello", "half": model.read_bytes()[:5000]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RuntimeFailure, match=f"cannot load .*{name}: rkllm_init failed"):
            RKLLM(tmp_path / name, library=rkllm_library)
