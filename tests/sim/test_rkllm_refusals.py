"""Bad arguments, bad files and bad settings: -1 (or ERROR), one log line that says what, and the program goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.rkllm_driver import ERROR, FINISH, Driver

GREEDY = ("set:top_k=1", "set:max_new_tokens=3")


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


def errors(log: str) -> list[str]:
    return [line.removeprefix("E rkllm: ") for line in log.splitlines() if line.startswith("E ")]


def test_null_arguments(driver: Driver, model: Path) -> None:
    done = driver(*GREEDY, f"init:{model}", "prompt:Hi", "nulls", "run")
    values = [int(line[2]) for line in done.lines if line[0] == "ret"]
    assert values == [0, *[-1] * (len(values) - 2), 0]
    assert len(errors(done.log)) == len(values) - 2 == 16
    assert all("NULL" in line for line in errors(done.log))
    assert done.states()[-1] == FINISH  # none of them gave a callback, or hurt the handle


def spoilt(model: Path, folder: Path, kind: str) -> Path:
    path, data = folder / "model.sim.gguf", model.read_bytes()
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "another format":
        path.write_bytes(b"RKLLM" + bytes(4096))
    elif kind == "cut in the header":
        path.write_bytes(data[:1000])
    elif kind == "cut by a byte":
        path.write_bytes(data[:-1])
    elif kind == "one bit changed":
        at = len(data) * 2 // 3
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "empty", "another format", "cut in the header", "cut by a byte", "one bit changed"]
)
def test_bad_model_files(driver: Driver, model: Path, tmp_path: Path, kind: str) -> None:
    path = spoilt(model, tmp_path, kind)
    done = driver(f"init:{path}", "run", "destroy", f"init:{model}", "prompt:Hi", *GREEDY, "run")
    assert done.returned("init") == [-1, 0]
    first, second, *rest = errors(done.log)
    assert first == "load model file error!"
    assert second.startswith("rkllm_init: ") and str(path) in second
    assert [line.split(": ")[0] for line in rest] == ["rkllm_run", "rkllm_destroy"]  # the handle is NULL


@pytest.mark.parametrize("field", ["top_p", "temperature", "repeat_penalty", "frequency_penalty", "presence_penalty"])
def test_parameters_that_are_no_numbers(driver: Driver, model: Path, field: str) -> None:
    done = driver(f"set:{field}=nan", f"init:{model}")
    assert done.returned("init") == [-1]
    assert errors(done.log) == [f"rkllm_init: {field} is not a finite number"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("repeat_penalty=0", "rkllm_init: repeat_penalty is 0.000000: it must be above 0; 1 switches it off"),
        ("repeat_penalty=-1", "rkllm_init: repeat_penalty is -1.000000: it must be above 0; 1 switches it off"),
        ("max_context_len=4", "rkllm_init: max_context_len is 4: it must be above 4"),
    ],
)
def test_parameters_out_of_range(driver: Driver, model: Path, setting: str, said: str) -> None:
    done = driver(f"set:{setting}", f"init:{model}")
    assert done.returned("init") == [-1]
    assert errors(done.log) == [said]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("max_context_len=1000", ["max_context_len 1000 is above the 512 of the model"]),
        (
            "max_context_len=8192",
            [
                "max_context_len 8192 is above the 512 of the model",
                "max_context_len 8192: on an RK3588, answers degrade past 4096 tokens",
            ],
        ),
        ("mirostat=1", ["mirostat is not simulated: top_k, top_p and temperature are used"]),
        ("is_async=1", ["is_async is ignored: rkllm_run blocks, rkllm_run_async does not"]),
    ],
)
def test_parameters_that_only_deserve_a_warning(driver: Driver, model: Path, setting: str, said: list[str]) -> None:
    done = driver(*GREEDY, f"set:{setting}", f"init:{model}", "prompt:Hi", "run")
    assert [line for line in done.log.splitlines() if line[0] == "W"] == [f"W rkllm: {line}" for line in said]
    assert done.states()[-1] == FINISH


@pytest.mark.parametrize(
    ("variable", "value"), [("RKSIM_SEED", "abc"), ("RKSIM_SEED", "-1"), ("RKSIM_SEED", "1" + "0" * 30),
                            ("RKSIM_KERNEL", "mmx"), ("RKSIM_IS_RUNNING", "1"), ("RKSIM_PAST_CONTEXT", "-1"),
                            ("RKSIM_PAST_CONTEXT", "1000000001"), ("RKSIM_PAST_CONTEXT", "endles")]
)  # fmt: skip
def test_bad_environment(driver: Driver, model: Path, variable: str, value: str) -> None:
    done = driver(f"init:{model}", env={variable: value})
    assert done.returned("init") == [-1]
    (said,) = errors(done.log)
    assert value in said


@pytest.mark.parametrize("call", ["run", "run_async"])
@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (["tokens:5,384"], "token id 384"),
        (["tokens:-1"], "token id -1"),
        (["tokens:"], "the prompt has no tokens"),
        (["tokens:" + ",".join(["5"] * 509)], "prompt gather than max context (509 tokens > 508)"),
        (["tokens:5", "token_count:18446744073709551615"], "prompt gather than max context (18446744073709551615"),
    ],
    ids=["too high", "negative", "none", "too many", "absurd count"],
)
def test_input_that_no_run_survives(driver: Driver, model: Path, commands: list[str], said: str, call: str) -> None:
    """ERROR, once; and the next run on the handle is as good as new."""
    done = driver(*GREEDY, "set:max_context_len=0", f"init:{model}", *commands, call, "wait", "tokens:5", "run")
    assert done.states(1) == [ERROR]
    assert (done.calls(1)[0].text, done.calls(1)[0].token) == (b"", -1)
    assert done.returned(call)[0] == (-1 if call == "run" else 0)
    (line,) = errors(done.log)
    assert line.startswith("error: ") and said in line
    assert done.states(2)[-1] == FINISH


def test_the_longest_prompt_that_fits(driver: Driver, model: Path) -> None:
    done = driver(*GREEDY, "set:max_context_len=40", f"init:{model}", "tokens:" + ",".join(["5"] * 36), "run")
    assert done.states()[-1] == FINISH and len(done.tokens()) == 3


def test_embeddings_that_are_not_finite(driver: Driver, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "embeddings"
    path.write_bytes(np.array([1.0] * 127 + [np.nan], np.float32).tobytes())
    done = driver(*GREEDY, f"init:{model}", f"embed:2,{path}", "run", f"embed:1,{path}", "run")
    assert done.states(1) == [ERROR] and done.states(2)[-1] == FINISH
    assert errors(done.log) == ["error: the input embeddings hold a value that is not finite"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("input_type:7", "unknown input type 7"),
        ("mode:5", "unknown infer mode 5"),
        ("lora:style", "no LoRA called 'style' is loaded"),
        ("lora", "lora_params->lora_adapter_name is NULL"),
    ],
)
def test_runs_that_are_refused_before_they_begin(driver: Driver, model: Path, command: str, said: str) -> None:
    done = driver(*GREEDY, f"init:{model}", "prompt:Hi", command, "run", "run_async", "is_running")
    assert done.calls(1) == done.calls(2) == []
    assert (done.returned("run"), done.returned("run_async"), done.returned("is_running")) == ([-1], [-1], [0])
    assert errors(done.log) == [f"rkllm_run: {said}", f"rkllm_run_async: {said}"]
