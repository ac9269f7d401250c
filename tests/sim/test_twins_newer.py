"""What only 1.2.1 and later, or 1.3 have: batches, counted images, sampling by the run, callbacks of several kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from rk3588 import hostlib
from rk3588.sim import SimModel
from tests.rkllm_driver import ERROR, FINISH, NORMAL
from tests.sim.test_rkllm import greedy
from tests.sim.test_twins import AS_GIVEN, GREEDY
from tests.twins import Twin

START, END = "<|im_start|>", "<|im_end|>"


@pytest.fixture
def newest(twins: Callable[[str], Twin]) -> Twin:
    return twins("1.3.1")


def rows_of(model: Path, ids: list[int]) -> np.ndarray:
    (table,) = [t for t in gguf.GGUFReader(model).tensors if t.name == "token_embd.weight"]
    return np.asarray(table.data)[ids].astype(np.float32)


def test_a_batch_is_as_many_runs(newer: Twin, model: Path) -> None:
    done = newer(*GREEDY, "set:extend_param.n_batch=3", f"init:{model}", AS_GIVEN, "prompts:Hello^Two words^A", "run",
                 "size")  # fmt: skip
    steps = [c for c in done.calls() if c.state == NORMAL]
    assert len(steps) == 6 and done.states()[-1] == FINISH and len(done.items()) == 3 * 7
    for index, text in enumerate(("Hello", "Two words", "A")):
        alone = newer(*GREEDY, f"init:{model}", AS_GIVEN, f"prompt:{text}", "run")
        assert [token for i, token, _ in done.items() if i == index and token >= 0] == alone.tokens() != []
        assert len(alone.tokens()) == 6


def test_of_a_batch_that_is_done_there_is_no_token(newer: Twin, model: Path) -> None:
    """The second ends at once, the first goes on."""
    done = newer("set:top_k=1", "set:presence_penalty=-1000", "set:max_new_tokens=3", "set:extend_param.n_batch=2",
                 f"init:{model}", "tokens:5", "tokens1:2", "run")  # fmt: skip
    assert [(i, token) for i, token, _ in done.items()] == [(0, 5), (1, -1)] * 3 + [(0, -1), (1, -1)]
    assert all(text == "NULL" for i, _, text in done.items()[:-2] if i == 1)


def test_hidden_states_of_a_batch(newer: Twin, model: Path) -> None:
    done = newer("set:extend_param.n_batch=2", f"init:{model}", "tokens:5,6", "tokens1:7", "mode:1", "run")
    found = [line for line in done.lines if line[0] == "rows"]
    alone = newer(f"init:{model}", "tokens:7", "mode:1", "run")
    assert [line[4] for line in found] == ["2", "1"]
    assert found[1][5] == alone.rows("hidden").tobytes().hex()


@pytest.mark.parametrize(("n", "returned"), [(8, 0), (9, -1), (0, 0)])
def test_how_many_there_can_be(newer: Twin, model: Path, n: int, returned: int) -> None:
    assert newer(f"set:extend_param.n_batch={n}", f"init:{model}").returned("init") == [returned]


def test_a_batch_saves_no_prompt_cache(newer: Twin, model: Path, tmp_path: Path) -> None:
    done = newer("set:extend_param.n_batch=2", f"init:{model}", f"cache:{tmp_path}/c", "save:1", "tokens:5",
                 "tokens1:6", "run")  # fmt: skip
    assert done.returned("run") == [-1] and not (tmp_path / "c").exists()


def test_a_prompt_cache_of_a_conversation(newer: Twin, model: Path, tmp_path: Path) -> None:
    commands = (f"cache:{tmp_path}/c", "save:1", "history:1", "tokens:5,6", "run", "tokens:7", "run")
    done = newer(*GREEDY, f"init:{model}", *commands)
    whole = ",".join(map(str, [5, 6, *done.tokens(1), 7]))
    again = newer(*GREEDY, f"init:{model}", f"cache:{tmp_path}/c", "load_prompt_cache", f"tokens:{whole}", "run")
    assert again.tokens() == done.tokens(2) and "prompt cache: 8 of 9 tokens" in again.log


def test_images_are_counted(newer: Twin, model: Path, oracle: SimModel, tmp_path: Path) -> None:
    """Two of two embeddings each, which are those of tokens: the answer is that of the tokens."""
    path = tmp_path / "image"
    path.write_bytes(rows_of(model, [5, 17, 30, 2]).tobytes())
    image = (f"image:2,2,{path}", "image_prompt:a<image>b<image>", "run")
    done = newer(*GREEDY, f"init:{model}", AS_GIVEN, *image, f"image:2,1,{path}", "run")
    bos = [oracle.info.bos_id] if oracle.info.add_bos else []
    ids = [*bos, *oracle.tokenise("a"), 5, 17, *oracle.tokenise("b"), 30, 2]
    assert done.tokens(1) == greedy(oracle, ids, 6)
    assert done.returned("run") == [0, -1]
    assert done.errors() == ["error: the prompt has 2 <image>, and the input 1: each has to have its own"]


def test_sizes_that_overflow_are_refused(newer: Twin, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    huge = 1 << 63
    done = newer(f"init:{model}", AS_GIVEN, f"image:{huge},2,{path}", "image_prompt:<image><image>", "run",
                 f"image:{huge},1,{path}", "image_prompt:<image>", "run")  # fmt: skip
    assert done.returned("run") == [-1, -1]
    wraps = newer(f"init:{model}", AS_GIVEN, f"image:{huge + 1},2,{path}", "image_prompt:<image><image>", "run")
    assert wraps.errors() == [f"error: n_image_tokens is {huge + 1}: no context holds as many"]


def test_sampling_and_length_by_the_run(newest: Twin, model: Path, oracle: SimModel) -> None:
    done = newest("set:temperature=9", "set:max_new_tokens=5", f"init:{model}", "tokens:5", "run", "sampling:1",
                  "max:3", "run", "max:0", "run", env={"RKSIM_SEED": "1"})  # fmt: skip
    wanted = greedy(oracle, [5], 5)
    assert done.tokens(1) != wanted and done.tokens(2) == wanted[:3] and done.tokens(3) == wanted


def test_an_end_token_that_ends_nothing(newest: Twin, model: Path) -> None:
    commands = ("set:top_k=1", "set:presence_penalty=-1000", "set:max_new_tokens=4")
    done = newest(*commands, "set:ignore_eos_token=1", f"init:{model}", "tokens:2", "run")
    assert [(c.token, c.text) for c in done.calls()] == [(2, b"")] * 4 + [(-1, b"")]


def test_userdata_of_a_run_that_is_given_none(newest: Twin, newer: Twin, model: Path) -> None:
    commands = (*GREEDY, f"init:{model}", "tokens:5", "run", "no_userdata", "run")
    theirs = newest("result_userdata:77", *commands)
    assert len(theirs.tokens(1)) == len(theirs.tokens(77)) == 6 and theirs.tokens(0) == []
    if newer.release == "1.2.3":
        assert len(newer(*commands).tokens(0)) == 6


def test_a_tokenizer_of_the_callers(newest: Twin, model: Path, oracle: SimModel) -> None:
    done = newest(*GREEDY, "tokenizer:7", f"init:{model}", AS_GIVEN, "prompt:abc", "run")
    assert ["tokenize", "7", b"abc".hex()] in done.lines
    assert done.tokens() == greedy(oracle, list(b"abc"), 6)
    failed = newest("tokenizer:7", "fail:-3", f"init:{model}", AS_GIVEN, "prompt:abc", "run")
    assert failed.states() == [ERROR] and "tokenizer_callback returned -3" in failed.errors()[0]


@pytest.mark.parametrize("first", [-1, -7, 384])
def test_ids_of_the_callers_tokenizer_are_checked(newest: Twin, model: Path, tmp_path: Path, first: int) -> None:
    """Those below 0 would pass for embeddings, of which the input has one only."""
    path = tmp_path / "image"
    path.write_bytes(rows_of(model, [5]).tobytes())
    image = (f"image:1,1,{path}", "image_prompt:ab<image>c", "run")
    done = newest("tokenizer:7", f"first_id:{first}", f"init:{model}", AS_GIVEN, *image, "prompt:abc", "run")
    assert done.states(1) == done.states(2) == [ERROR]
    wanted = f"error: of tokenizer_callback: token id {first} is outside the vocabulary of 384"
    assert done.errors() == [wanted, wanted]


def test_ids_below_0_are_no_embeddings_of_the_run_before(newer: Twin, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(rows_of(model, [5, 6]).tobytes())
    image = (f"image:2,1,{path}", "image_prompt:<image>", "run")
    for tokens in ("tokens:1,-1,-1,7", "tokens:-1,-1,7"):  # with and without BOS
        done = newer(*GREEDY, f"init:{model}", AS_GIVEN, *image, tokens, "run")
        assert done.states(2) == [ERROR] and done.errors() == ["error: token id -1 is outside the vocabulary of 384"]


@pytest.mark.parametrize(("kind", "size"), [("float32", 4), ("float16", 2)])
def test_embeddings_of_the_callers(newest: Twin, model: Path, kind: str, size: int) -> None:
    """Of the prompt at once, and of each token of the answer."""
    environment = {"RKSIM_EMBED_CALLBACK": kind}
    done = newest(*GREEDY, "embedder:9", f"init:{model}", "tokens:5,6", "run", env=environment)
    calls = [line[1:] for line in done.lines if line[0] == "embed"]
    hidden = hostlib.SimModel(model, threads=1).info.hidden
    assert calls[0] == ["9", "5", "2", str(2 * hidden * size)]
    assert [call[1] for call in calls[1:]] == [str(token) for token in done.tokens()[:5]]
    assert done.tokens() != newest(*GREEDY, f"init:{model}", "tokens:5,6", "run").tokens()
    failed = newest("embedder:9", "fail:1", f"init:{model}", "tokens:5", "run", env=environment)
    assert failed.states() == [ERROR] and "embed_callback returned 1, not 0" in failed.errors()[0]
