"""RKLLM_INPUT_MULTIMODAL: images' embeddings in the place of <image>, which are those of tokens, so that a run on the
tokens themselves says what must come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from rk3588.hostlib import SimModel
from tests.rkllm_driver import ERROR, FINISH, HIDDEN, Driver
from tests.sim.test_rkllm_refusals import errors
from tests.sim.test_rkllm_sentencepiece import model as sentencepiece_model

GREEDY = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=8")
START, CONTENT, END = "<|im_start|>", "<|endoftext|>", "<|im_end|>"  # tokens of the tiny vocabulary
FRAME = (f"set:img_start={START}", f"set:img_content={CONTENT}", f"set:img_end={END}")
IMAGE = [70, 300, 5, 17, 129, 64]  # the tokens whose embeddings are the images
NO_TOKEN = "W rkllm: img_content '{}' is no token of this model"

spm = sentencepiece_model


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


def embeddings(model: Path, folder: Path, ids: Sequence[int]) -> Path:
    (table,) = [t for t in gguf.GGUFReader(model).tensors if t.name == "token_embd.weight"]
    path = folder / "image"
    path.write_bytes(np.asarray(table.data)[list(ids)].astype(np.float32).tobytes())
    return path


def spliced(model: Path, prompt: str, each: int, image: Sequence[int], frame: tuple[str, str, str]) -> list[int]:
    """The prompt as a board reads it: tokenised with img_content in it, whose tokens are then replaced in order."""
    start, content, end = frame
    with SimModel(model, threads=1) as oracle:
        ids = oracle.tokenise(prompt.replace("<image>", start + content * each + end))
        (place,) = oracle.tokenise(content)[-1:]
        left = iter(image)
        ids = [next(left) if id_ == place else id_ for id_ in ids]
        return ids if not oracle.info.add_bos or ids[0] == oracle.info.bos_id else [oracle.info.bos_id, *ids]


@pytest.mark.parametrize("dtype", ["w8a8", "w8a8_g128", "fp32"])
@pytest.mark.parametrize(
    "prompt",
    ["What is <image> here?", "<image>", "<image>at the start", "at the end: <image>", "One <image> and two <image>.",
     "<image><image><image>"],
)  # fmt: skip
def test_token_embeddings_give_what_the_tokens_give(
    driver: Driver, tiny_bundles: Mapping[str, Path], tmp_path: Path, dtype: str, prompt: str
) -> None:
    """The same tokens and, to the bit, the same hidden states of every position."""
    model = tiny_bundles[dtype] / "model.sim.gguf"
    image, each = embeddings(model, tmp_path, IMAGE), len(IMAGE) // prompt.count("<image>")
    ids = spliced(model, prompt, each, IMAGE, (START, CONTENT, END))
    assert set(IMAGE) <= set(ids)
    given = (f"image:{len(IMAGE)},{image}", f"image_prompt:{prompt}")
    sent = f"tokens:{','.join(map(str, ids))}"
    runs = (*given, "run", "run_async", "wait", sent, "run", "mode:1", "run", *given, "run")
    done = driver(*GREEDY, *FRAME, f"init:{model}", *runs)
    assert len(done.tokens(3)) == 8 and done.tokens(1) == done.tokens(2) == done.tokens(3)
    assert done.states(5) == [HIDDEN, FINISH]
    assert np.array_equal(done.hidden(5), done.hidden(4)) and len(done.hidden(4)) == len(ids)
    assert errors(done.log) == [] and NO_TOKEN.format("") not in done.log


def test_a_sentencepiece_vocabulary_sees_one_text(driver: Driver, spm: Path, tmp_path: Path) -> None:
    """BOS comes first, and what follows an image does not begin a text."""
    image = embeddings(spm, tmp_path, [7, 9])
    ids = spliced(spm, "the <image>the", 2, [7, 9], ("", "<unk>", ""))
    assert ids[0] == 1 and {7, 9} <= set(ids)
    commands = (f"init:{spm}", f"image:2,{image}", "image_prompt:the <image>the", "run")
    done = driver(*GREEDY, "set:img_content=<unk>", *commands, f"tokens:{','.join(map(str, ids))}", "run")
    assert done.tokens(1) == done.tokens(2) != []


@pytest.mark.parametrize(("content", "said"), [("set:img_content=<|image_pad|>", "<|image_pad|>"), ("set:top_k=1", "")])
def test_content_that_is_no_token_is_only_warned_about(
    driver: Driver, model: Path, tmp_path: Path, content: str, said: str
) -> None:
    """A Llama has no token for it, and no place is looked for by it. NULL frames are empty ones."""
    image = embeddings(model, tmp_path, IMAGE)
    given = (f"image:6,{image}", "image_prompt:A <image> B", "run")
    with SimModel(model, threads=1) as oracle:
        ids = [*oracle.tokenise("A "), *IMAGE, *oracle.tokenise(" B")]
        ids = [1, *ids] if oracle.info.add_bos else ids
    done = driver(*GREEDY, content, f"init:{model}", *given, f"tokens:{','.join(map(str, ids))}", "run")
    assert done.tokens(1) == done.tokens(2) != []
    assert NO_TOKEN.format(said) in done.log


def test_many_tokens_in_several_chunks(driver: Driver, model: Path, tmp_path: Path) -> None:
    """More than the prefill evaluates at once."""
    many = (IMAGE * 50)[:290]
    image = embeddings(model, tmp_path, many)
    given = (f"image:290,{image}", "image_prompt:x<image>y")
    ids = ",".join(map(str, spliced(model, "x<image>y", 290, many, (START, CONTENT, END))))
    done = driver(*GREEDY, *FRAME, f"init:{model}", *given, "run", f"tokens:{ids}", "run")
    assert done.tokens(1) == done.tokens(2) != []


def test_penalties_see_the_text_only(driver: Driver, model: Path, tmp_path: Path) -> None:
    """One of -1000 lets only tokens win that were seen: among those of all the vocabulary, one of the image's would."""
    many = list(range(3, 384))
    image, prompt = embeddings(model, tmp_path, many), "ab<image>"
    ids = spliced(model, prompt, len(many), many, (START, CONTENT, END))
    text = [id_ for i, id_ in enumerate(ids) if not (ids.index(3) <= i < ids.index(3) + len(many))]
    given = (f"image:{len(many)},{image}", f"image_prompt:{prompt}", "run")
    sent = (f"tokens:{','.join(map(str, ids))}", "run")
    done = driver(*GREEDY, "set:presence_penalty=-1000", *FRAME, f"init:{model}", *given, *sent)
    assert set(done.tokens(1)) <= set(text) and not set(done.tokens(2)) <= set(text)


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize(
    ("count", "prompt", "said"),
    [
        ("6", "no image", "the prompt of a multimodal input has no <image>"),
        ("6", "", "has no <image>"),
        ("0", "<image>", "n_image_tokens is 0"),
        ("6", "<image>" * 4, "n_image_tokens is 6, which the prompt's 4 <image> cannot share evenly"),
        ("6", "<image>" * 7, "n_image_tokens is 6, which the prompt's 7 <image> cannot share evenly"),
        ("509", "<image>", "prompt gather than max context (509 tokens > 508)"),
        ("508", "<image>x", "prompt gather than max context (51"),
        ("18446744073709551615", "<image>", "prompt gather than max context (18446744073709551615 tokens > 508)"),
    ],
)
def test_what_does_not_fit_is_an_error(
    driver: Driver, model: Path, tmp_path: Path, count: str, prompt: str, said: str, mode: int
) -> None:
    image = embeddings(model, tmp_path, IMAGE * 90)
    commands = (f"init:{model}", f"mode:{mode}", f"image:{count},{image}", f"image_prompt:{prompt}", "run")
    done = driver(*GREEDY, *FRAME, *commands, "mode:0", "tokens:5", "run")
    assert done.states(1) == [ERROR] and done.returned("run") == [-1, 0] and done.states(2)[-1] == FINISH
    (line,) = errors(done.log)
    assert line.startswith("error: ") and said in line


def test_embeddings_that_are_not_finite(driver: Driver, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(np.array([1.0] * 63 + [np.inf], np.float32).tobytes())
    done = driver(*GREEDY, *FRAME, f"init:{model}", f"image:1,{path}", "image_prompt:<image>", "run")
    assert done.states() == [ERROR]
    assert errors(done.log) == ["error: the image embeddings hold a value that is not finite"]


def test_null_pointers_and_prompt_caches_are_refused_at_once(driver: Driver, model: Path, tmp_path: Path) -> None:
    image = embeddings(model, tmp_path, IMAGE)
    done = driver(*GREEDY, f"init:{model}", f"image:6,{image}", "image_prompt", "run", "image_prompt:<image>",
                  f"cache:{tmp_path}/cache", "save_cache:1", "run")  # fmt: skip
    assert done.returned("run") == [-1, -1] and done.calls(1) == done.calls(2) == []
    null, cache = errors(done.log)
    assert null == "rkllm_run: multimodal_input.prompt is NULL" and "it cannot be saved" in cache
