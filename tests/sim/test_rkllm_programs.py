"""What programs written for the real library rely on: NULLs, its log, strings of their own that they overwrite, and an
end to every answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.rkllm_driver import ERROR, FINISH, Driver, Outcome
from tests.sim.test_rkllm_multimodal import IMAGE, START, embeddings
from tests.sim.test_rkllm_refusals import errors

GREEDY = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=6")
ENDLESS = ("set:top_k=1", "set:repeat_penalty=1", "set:presence_penalty=-1000", "set:max_context_len=16", "tokens:70")


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


def warnings(done: Outcome) -> list[str]:
    return [line for line in done.log.splitlines() if line.startswith("W ")]


@pytest.mark.parametrize("call", ["run", "run_async"])
def test_null_infer_params_mean_generate(driver: Driver, model: Path, call: str) -> None:
    done = driver(*GREEDY, f"init:{model}", "tokens:5,6", "run", "mode:1", "no_infer", call, "wait")
    assert done.tokens(2) == done.tokens(1) != [] and done.states(2)[-1] == FINISH
    assert warnings(done) == [
        "W rkllm: infer_params is NULL: RKLLM_INFER_GENERATE without LoRA and prompt cache is taken"
    ]


def test_a_null_callback_hears_nothing(driver: Driver, model: Path, tmp_path: Path) -> None:
    """Both kinds of run, an error, hidden states, and a second handle that hears."""
    commands = ("no_callback", f"init:{model}", "tokens:5", "run", "run_async", "wait", "mode:1", "run", "mode:0",
                f"cache:{tmp_path}/cache", "save_cache:1", "run", "save_cache:0", "tokens:-1", "run")  # fmt: skip
    done = driver(*GREEDY, *commands)
    assert done.returned("init") == [0] and [line for line in done.lines if line[0] == "cb"] == []
    assert (done.returned("run"), done.returned("run_async")) == ([0, 0, 0, -1], [0])
    assert (tmp_path / "cache").is_file()  # it did run
    assert warnings(done) == ["W rkllm: callback is NULL: runs keep their answers to themselves"]
    assert len(errors(done.log)) == 1


def test_strings_may_be_overwritten_while_init_still_loads(driver: Driver, model: Path, tmp_path: Path) -> None:
    image = embeddings(model, tmp_path, IMAGE)
    run = (f"image:6,{image}", "image_prompt:<image>", "run")
    frame = (f"set:img_start={START}", "set:img_content=<|endoftext|>", "set:img_end= here:")
    plain = driver(*GREEDY, *frame, f"init:{model}", *run)
    done = driver(*GREEDY, *frame, "scribble", f"init:{model}", *run, env={"RKSIM_FAULTS": "load_ms=300"})
    assert done.returned("init") == [0] and done.tokens() == plain.tokens() != []


def test_figures_of_each_run(driver: Driver, model: Path) -> None:
    """A line for each stage, with its name first and four numbers behind."""
    env = {"RKLLM_LOG_LEVEL": "1", "RKSIM_FAULTS": "prefill_ms=60,token_ms=20"}
    done = driver(*GREEDY, f"init:{model}", "tokens:5,6,7", "run", "mode:1", "run_async", "wait", env=env)
    found = re.findall(r"^I rkllm:  (Prefill|Generate) +([\d.]+) +(\d+) +([\d.]+) +([\d.]+) *$", done.log, re.M)
    assert [(stage, int(tokens)) for stage, _, tokens, *_ in found] == [
        ("Prefill", 3), ("Generate", 6), ("Prefill", 3), ("Generate", 0)
    ]  # fmt: skip
    times = [[float(number) for number in row[1:]] for row in found]
    assert times[0][0] >= 60 and times[1][0] >= 120
    for total, tokens, each, rate in times[:2]:
        assert each == pytest.approx(total / tokens, abs=0.01) and rate == pytest.approx(1000 / each, rel=0.01)
    assert times[3][2:] == [0, 0]
    head = r"I rkllm:  Stage +Total Time \(ms\) +Tokens +Time per Token \(ms\) +Tokens per Second *$"
    assert len(re.findall(head, done.log, re.M)) == 2


@pytest.mark.parametrize("level", ["", "0", "none"])
def test_no_figures_unless_asked(driver: Driver, model: Path, level: str) -> None:
    assert "Prefill" not in driver(*GREEDY, f"init:{model}", "tokens:5", "run", env={"RKLLM_LOG_LEVEL": level}).log


def test_an_end_token_is_no_token_of_the_answer(driver: Driver, model: Path) -> None:
    commands = ("set:top_k=1", "set:presence_penalty=-1000", f"init:{model}", "tokens:2", "run")
    log = driver(*commands, env={"RKLLM_LOG_LEVEL": "1"}).log
    assert re.search(r"Generate +[\d.]+ +0 ", log)


def test_a_prompt_cache_without_a_path(
    driver: Driver, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = driver(*GREEDY, f"init:{model}", "save_cache:1", "tokens:5,6,7,8", "run", "save_cache:0",
                  "cache:./prompt_cache.bin", "load_prompt_cache", "run")  # fmt: skip
    assert done.returned("load_prompt_cache") == [0] and [path.name for path in tmp_path.iterdir()] == [
        "prompt_cache.bin"
    ]
    assert "prompt cache: 3 of 4 tokens" in done.log and done.tokens(1) == done.tokens(2)


@pytest.mark.parametrize(("setting", "tokens"), [("0", 16), ("1", 17), ("100", 116), ("", 4112)])
def test_an_answer_that_never_ends_ends_past_the_context(
    driver: Driver, model: Path, setting: str, tokens: int
) -> None:
    """The prompt's one token and 15 more fill the context; the last one given needs no place in it."""
    done = driver(*ENDLESS, f"init:{model}", "run", env={"RKSIM_PAST_CONTEXT": setting})
    assert len(done.tokens()) == tokens and (done.states()[-1], done.calls()[-1].token) == (FINISH, -1)
    past = setting or "4096"
    assert warnings(done) == [
        f"W rkllm: the answer ends here: it is {past} tokens past the context of 16 (RKSIM_PAST_CONTEXT)"
    ]


def test_unless_it_is_to_be_endless(driver: Driver, model: Path) -> None:
    commands = (*ENDLESS, "set:max_new_tokens=5000", f"init:{model}", "run")
    done = driver(*commands, env={"RKSIM_PAST_CONTEXT": "endless"})
    assert len(done.tokens()) == 5000 and warnings(done) == [] and ERROR not in done.states()
