"""What RKLLM 1.2.0, 1.2.3 and 1.3.1 do otherwise than 1.1.1, run by run: on the twin of each, by a C program."""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from rk3588 import hostlib
from rk3588.rkllm import version_in
from rk3588.sim import SimModel
from tests.rkllm_driver import ERROR, FINISH, NORMAL, WAITING
from tests.rkllm_headers import committed
from tests.sim.test_rkllm import exported, greedy
from tests.twins import CXX17, RELEASES, Twin, compile_driver, library

GREEDY = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=6")
ENDLESS = ("set:top_k=1", "set:repeat_penalty=1", "set:presence_penalty=-1000", "set:max_context_len=16", "tokens:70")
AS_GIVEN = "template:^^"


@pytest.mark.parametrize("release", ("1.1.1", *RELEASES))
def test_exports_are_those_of_the_header(release: str) -> None:
    assert exported(library(release)) == set(committed(release)["functions"])


@pytest.mark.parametrize("release", ("1.1.1", *RELEASES))
def test_the_version_stands_in_the_file_and_in_the_log(release: str, twins: Callable[[str], Twin], model: Path) -> None:
    data = library(release).read_bytes()
    assert f"librkllmrt version: {release} ".encode() in data
    assert version_in(data.decode("latin-1")) == release
    if release != "1.1.1":
        log = twins(release)(f"init:{model}").log
        assert f"I rkllm: rkllm-runtime version: {release}, rknpu driver version: 0.9.8, platform: RK3588" in log
        assert "I rkllm: Enabled cpus: [4, 5, 6, 7]" in log


@pytest.mark.parametrize("release", RELEASES)
def test_defaults_and_what_they_tell_of_the_layout(release: str) -> None:
    """Before it is known which layout this is: into zeroed room that is larger than any."""

    class Room(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_uint8 * 256)]

    function = ctypes.CDLL(str(library(release))).rkllm_createDefaultParam
    function.restype = Room
    room = bytes(function())
    mask, count = (68, 65) if release == "1.3.1" else (96, 93)
    assert (struct.unpack_from("<I", room, mask)[0], room[count]) == (0xF0, 4)
    elsewhere = (96, 93) if release == "1.3.1" else (68, 65)
    assert (struct.unpack_from("<I", room, elsewhere[0])[0], room[elsewhere[1]]) != (0xF0, 4)
    values = struct.unpack_from("<Qiiii5fi2f", room)
    expected = (0, 512, -1, 40, -1, 0.9, 0.8, 1.1, 0, 0, 0, 5, 0.1)
    assert values == pytest.approx(expected) and room[56] == 1


def test_a_run_is_that_of_1_1_when_prompts_go_in_as_given(twin: Twin, model: Path, oracle: SimModel) -> None:
    done = twin(*GREEDY, f"init:{model}", AS_GIVEN, "prompt:<|im_start|>Hello", "run", "run_async", "wait")
    ids = greedy(oracle, oracle.tokenise("<|im_start|>Hello"), 6)
    assert done.tokens(1) == done.tokens(2) == ids and done.states()[-1] == FINISH
    assert {c.thread for c in done.calls(1)} == {"main"} and {c.thread for c in done.calls(2)} == {"other"}
    assert done.returned("run") + done.returned("run_async") == [0, 0]


def test_a_cpp_program_does_the_same(twin: Twin, model: Path, tmp_path: Path) -> None:
    program = compile_driver(twin.release, tmp_path / "driver", CXX17)
    commands = (*GREEDY, f"init:{model}", "prompt:Hello", "history:1", "run", "prompt:More", "run")
    plain, cpp = twin(*commands), Twin(twin.release, program, twin.library)(*commands)
    assert cpp.tokens(1) + cpp.tokens(2) == plain.tokens(1) + plain.tokens(2) != []


@pytest.mark.parametrize(("mode", "kind"), [(1, "hidden"), (2, "logits")])
def test_hidden_states_and_logits_come_in_normal(
    twin: Twin, model: Path, oracle: SimModel, mode: int, kind: str
) -> None:
    commands = (f"init:{model}", "tokens:5,6,7", f"mode:{mode}", "at:0", "reply:2", "run")
    done = twin(*commands)
    assert done.states() == [NORMAL, FINISH] and done.calls()[0].token == -1
    rows = done.rows(kind)
    assert len(rows) == 3
    if kind == "logits":
        np.testing.assert_array_equal(rows, oracle.logits([5, 6, 7]))
        assert len(twin(*commands, env={"RKSIM_LOGITS": "last"}).rows(kind)) == 1
    # Before 1.3 they stay until the handle goes; there, 2 as the callback's answer frees them.
    stayed = "hidden states and logits of 1 runs stayed until now"
    assert (stayed in done.log) == (twin.release != "1.3.1")
    assert stayed in twin(*commands[:-2], "run").log


def test_the_end_token_is_told_without_text(twin: Twin, model: Path) -> None:
    commands = ("set:top_k=1", "set:presence_penalty=-1000", f"init:{model}", "tokens:2", "run")
    done = twin(*commands)
    assert [(c.state, c.token, c.text) for c in done.calls()] == [(NORMAL, 2, b""), (FINISH, 2, b"")]
    silent = twin(*commands, env={"RKSIM_END_TOKEN": "silent"})
    assert [c.state for c in silent.calls()] == [FINISH]


def test_waiting_has_no_text_and_the_whole_character_comes_next(twin: Twin, model: Path) -> None:
    near_uniform = ("set:temperature=100", "set:top_k=0", "set:top_p=1", "set:max_new_tokens=300")
    done = twin(*near_uniform, f"init:{model}", "tokens:5", "run", env={"RKSIM_SEED": "3"})
    waiting = [c for c in done.calls() if c.state == WAITING]
    assert waiting and all(c.text == b"" for c in waiting)
    for call in done.calls():
        assert call.text is not None and not call.text.endswith(b"\xe4")


def test_figures_come_with_finish_alone(newer: Twin, model: Path) -> None:
    faults = {"RKSIM_FAULTS": "prefill_ms=60,token_ms=20"}
    done = newer(*GREEDY, f"init:{model}", "tokens:5,6,7", "run", env=faults)
    prompt, answer, prompt_ms, answer_ms, memory = done.perf()
    assert (prompt, answer) == (3, 5)  # the answer's first token is not counted
    assert prompt_ms >= 60 and answer_ms >= 120 and memory > 1
    assert [line[0] for line in done.lines].count("perf") == 1


@pytest.mark.parametrize("context", [0, 4])
def test_a_prompt_that_is_too_long(twin: Twin, model: Path, context: int) -> None:
    ids = ",".join(["5"] * (13 + context))
    done = twin("set:max_context_len=16", f"init:{model}", f"tokens:{ids}", "run", "run_async", "wait")
    assert done.returned("run") == [-1] and done.returned("run_async") == [0]
    assert done.states(1) == ([] if twin.release == "1.3.1" else [ERROR]) and done.states(2) == [ERROR]
    assert done.errors()[0].startswith("error: prompt gather than max context")


def test_a_context_beyond_the_models_is_refused(twin: Twin, tiny_bundles: Mapping[str, Path]) -> None:
    model = tiny_bundles["fp16"] / "model.sim.gguf"
    limit = hostlib.SimModel(model, threads=1).info.context_length
    done = twin(f"set:max_context_len={limit + 1}", f"init:{model}")
    assert done.returned("init") == [-1]
    said = f"max_context[{limit + 1}] must be less than the model's max_context_limit[{limit}]"
    assert done.errors() == [f"rkllm_init: {said}"]
    assert twin(f"set:max_context_len={limit}", f"init:{model}").returned("init") == [0]


def test_an_abort_from_inside_the_callback(twin: Twin, model: Path) -> None:
    commands = ("set:top_k=1", f"init:{model}", "tokens:5", "at:1", "do:abort", "run", "at:-1", "run")
    done = twin(*commands, env={"RKSIM_PAST_CONTEXT": "0"})
    assert done.returned("abort") == [0] and done.states(1) == [NORMAL, NORMAL, FINISH]
    assert done.tokens(2)[:2] == done.tokens(1) and done.states(2)[-1] == FINISH
    assert {c.thread for c in done.calls()} == {"main"}


@pytest.mark.parametrize("setting", ["measured", "header"])
def test_is_running(twin: Twin, model: Path, setting: str) -> None:
    """What the header of 1.2 says is not what was measured; that of 1.3 says it."""
    turned = setting == "header" and twin.release != "1.3.1"
    commands = (*GREEDY, f"init:{model}", "tokens:5", "at:0", "do:is_running", "run", "is_running")
    done = twin(*commands, env={"RKSIM_IS_RUNNING": setting})
    assert done.returned("is_running") == ([0, 1] if turned else [1, 0])


def test_no_infer_params_mean_generate(twin: Twin, model: Path) -> None:
    done = twin(*GREEDY, f"init:{model}", "tokens:5,6", "run", "mode:1", "no_infer", "run")
    assert done.tokens(2) == done.tokens(1) != []


def test_a_window_that_is_full_shifts_and_goes_on(twin: Twin, model: Path) -> None:
    """With a kept beginning, an answer is another one once the window has moved, and not before."""
    answers = {}
    for keep in (0, 4, 100, -1):
        done = twin(*ENDLESS, f"set:n_keep={keep}", f"init:{model}", "tokens:5,6,7,8,70", "run",
                    env={"RKSIM_PAST_CONTEXT": "30"})  # fmt: skip
        assert done.states()[-1] == FINISH and len(done.tokens()) == 16 - 5 + 1 + 30
        answers[keep] = twin("set:max_context_len=16", "set:max_new_tokens=40", f"set:n_keep={keep}", "set:top_k=1",
                             f"init:{model}", "tokens:5,6,7,8,70", "run").tokens()  # fmt: skip
    assert answers[-1] != answers[0] and answers[4] != answers[0]
    assert len({tuple(answer[:12]) for answer in answers.values()}) == 1
    none = twin("set:max_context_len=16", "set:max_new_tokens=40", "set:n_keep=-1", "set:top_k=1", f"init:{model}",
                "tokens:5,6,7,8,70", "run", env={"RKSIM_N_KEEP": "none"})  # fmt: skip
    assert none.tokens() == answers[0]


def test_cross_attention_is_refused(newer: Twin, model: Path) -> None:
    done = newer(f"init:{model}", "cross", "tokens:5", "at:0", "do:abort", "run")
    assert done.returned("cross") == [-1] and done.returned("run") == [0]
    assert done.errors() == ["rkllm_set_cross_attn_params: cross attention is not simulated"]
    assert newer("set:extend_param.use_cross_attn=1", f"init:{model}").returned("init") == [-1]


@pytest.mark.parametrize("name", ["END_TOKEN", "PAUSE", "N_KEEP", "LOGITS"])
def test_a_setting_that_is_none_is_refused(twin: Twin, model: Path, name: str) -> None:
    done = twin(f"init:{model}", env={f"RKSIM_{name}": "perhaps"})
    assert done.returned("init") == [-1]
    assert re.search(rf"RKSIM_{name} is 'perhaps': it must be \w+ \(the default\) or \w+", done.log)


def test_the_headers_compile_where_the_installed_one_did(twin: Twin, tmp_path: Path) -> None:
    """By the path that `packaged` gives: a program needs this folder and nothing else."""
    from rk3588.resources import packaged

    header = packaged(f"include/{twin.release}/rkllm.h")
    source = '#include "rkllm.h"\nint main(void) { return (int)sizeof(RKLLMParam) == 0; }\n'
    command = ["cc", "-x", "c", "-std=c11", "-Werror", f"-I{header.parent}", "-", "-o", str(tmp_path / "user")]
    subprocess.run(command, input=source, text=True, check=True)
    subprocess.run([str(tmp_path / "user")], check=True)
