"""The ten functions from a C program, over a tiny model, with librksim as the oracle of what they should say."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from rk3588.hostlib import SimModel
from tests.rkllm_driver import FINISH, HIDDEN, INCLUDE, NORMAL, WAITING, Driver

GREEDY = ("set:top_k=1", "set:repeat_penalty=1")
BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


@pytest.fixture(scope="module")
def oracle(model: Path) -> Iterator[SimModel]:
    with SimModel(model, threads=1) as opened:
        yield opened


def greedy(oracle: SimModel, ids: list[int], n: int) -> list[int]:
    """n tokens by argmax, each from a fresh pass over the whole sequence."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(np.argmax(oracle.logits(ids)[-1])))
    return ids[-n:]


def exported(library: Path) -> set[str]:
    done = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines()}


TEN = """createDefaultParam init load_lora load_prompt_cache release_prompt_cache destroy run run_async abort
is_running"""


def test_exports_are_exactly_the_interface(rkllm_library: Path, rksim_library: Path) -> None:
    assert exported(rkllm_library) == {f"rkllm_{name}" for name in TEN.split()}
    door = exported(rksim_library)
    assert "rksim_open" in door and all(name.startswith("rksim_") for name in door)


@pytest.mark.parametrize(("compiler", "standard"), [("cc", "c11"), ("c++", "c++17")])
def test_header_compiles_without_a_warning(compiler: str, standard: str, tmp_path: Path) -> None:
    source = tmp_path / ("user.c" if compiler == "cc" else "user.cpp")
    source.write_text(
        '#include "rkllm.h"\n#include "rkllm.h"\nint main(void) { return (int)sizeof(RKLLMParam) - 200; }\n'
    )
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{INCLUDE}", f"-std={standard}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(tmp_path / "user")], check=True)
    subprocess.run([str(tmp_path / "user")], check=True)


# In the order of the struct, from max_context_len to is_async.
DEFAULTS = "512 -1 40 0.9 0.8 1.1 0 0 0 5 0.1 1 0"


def test_defaults(driver: Driver) -> None:
    assert driver("defaults").out.split()[1:] == DEFAULTS.split()


def test_init_says_who_it_is(driver: Driver, model: Path) -> None:
    log = driver(f"init:{model}", env={"RKSIM_KERNEL": "scalar", "RKSIM_THREADS": "1"}).log.splitlines()
    assert log == [
        "I rkllm: rkllm-runtime version: 1.1.1, rknpu driver version: 0.9.8, platform: RK3588",
        "I rksim: simulated runtime, no NPU is used; kernel scalar, 1 thread",
    ]


@pytest.mark.parametrize("call", ["run", "run_async"])
def test_greedy_run(driver: Driver, model: Path, oracle: SimModel, call: str) -> None:
    prompt = "<|im_start|>user\nHow many legs?<|im_end|>\n"
    done = driver(*GREEDY, "set:max_new_tokens=24", f"init:{model}", f"prompt:{prompt}", call, "wait", call, "wait")
    ids = oracle.tokenise(prompt)
    assert ids[0] == BOS
    assert done.tokens() == greedy(oracle, ids, 24)
    assert done.states()[-1] == FINISH and set(done.states()[:-1]) <= {NORMAL, WAITING}
    assert [c.token for c in done.calls(2)] == [c.token for c in done.calls(1)]  # every run starts afresh
    assert {c.thread for c in done.calls()} == {"main" if call == "run" else "other"}
    assert done.returned(call) == [0, 0]


def test_bos_is_added_only_where_the_prompt_lacks_it(driver: Driver, model: Path, oracle: SimModel) -> None:
    commands = [*GREEDY, "set:max_new_tokens=8", f"init:{model}"]
    done = driver(*commands, "prompt:Hello", "run", "prompt:<|im_start|>Hello", "run")
    added = [BOS] if oracle.info.add_bos else []
    assert done.tokens(1) == greedy(oracle, added + oracle.tokenise("Hello"), 8)
    assert done.tokens(2) == greedy(oracle, [BOS, *oracle.tokenise("Hello")], 8)


def test_token_input_goes_in_as_it_is(driver: Driver, model: Path, oracle: SimModel) -> None:
    done = driver(*GREEDY, "set:max_new_tokens=8", f"init:{model}", "tokens:5,1,300", "run")
    assert done.tokens() == greedy(oracle, [5, 1, 300], 8)


def test_embedding_input_is_the_tokens_seen_from_inside(driver: Driver, model: Path, tmp_path: Path) -> None:
    import gguf

    (table,) = [t for t in gguf.GGUFReader(model).tensors if t.name == "token_embd.weight"]
    ids = [5, 17, 300, 2]
    path = tmp_path / "embeddings"
    path.write_bytes(np.asarray(table.data)[ids].astype(np.float32).tobytes())
    commands = [*GREEDY, "set:max_new_tokens=8", f"init:{model}"]
    done = driver(*commands, f"tokens:{','.join(map(str, ids))}", "run", f"embed:{len(ids)},{path}", "run")
    assert len(done.tokens(1)) == 8
    assert done.tokens(2) == done.tokens(1)


def test_text_arrives_in_whole_characters(driver: Driver, model: Path, oracle: SimModel) -> None:
    """Near-uniform draws from a vocabulary of mostly single bytes: incomplete and invalid UTF-8 of every kind."""
    runs = 40
    hot = ["set:temperature=9", "set:top_k=0", "set:top_p=1", "set:max_new_tokens=200", f"init:{model}"]
    done = driver(*hot, "prompt:x", *["run"] * runs, env={"RKSIM_SEED": "3"})
    lengths = []
    for run in range(1, runs + 1):
        held = b""
        for call in done.calls(run)[:-1]:
            assert call.token is not None
            held += oracle.detokenise([call.token], skip_special=True)
            waits = ends_inside_a_character(held)
            shown = held.split(b"\0")[0]  # a C string: U+0000 ends it
            assert (call.state, call.text) == ((WAITING, b"") if waits else (NORMAL, shown))
            held = held if waits else b""
            lengths.append(len(held))
    assert len(lengths) > 1000 and max(lengths) >= 2  # characters of three bytes and more were begun


def ends_inside_a_character(text: bytes) -> bool:
    """By Python's own decoder, which names an error at the end 'unexpected end of data'."""
    for size in (1, 2, 3):
        try:
            text[-size:].decode()
        except UnicodeDecodeError as error:
            if error.start == 0 and error.reason == "unexpected end of data":
                return len(text) >= size
    return False


@pytest.mark.parametrize(("skip", "shown"), [(1, []), (0, [EOS])])
def test_end_of_the_answer(driver: Driver, model: Path, skip: int, shown: list[int]) -> None:
    """A presence penalty of -1000 makes the prompt's token win: the end token, at once."""
    commands = [*GREEDY, "set:presence_penalty=-1000", f"set:skip_special_token={skip}", f"init:{model}"]
    done = driver(*commands, f"tokens:{EOS}", "run")
    assert done.tokens() == shown
    assert done.text() == (b"" if skip else b"<|im_end|>")
    assert (done.states()[-1], done.calls()[-1].token, done.calls()[-1].text) == (FINISH, EOS, b"")


def test_special_tokens_within_an_answer(driver: Driver, model: Path) -> None:
    for skip, text in (("1", b""), ("0", b"<|im_start|>" * 3)):
        commands = [*GREEDY, "set:presence_penalty=-1000", f"set:skip_special_token={skip}", "set:max_new_tokens=3"]
        done = driver(*commands, f"init:{model}", f"tokens:{BOS}", "run")
        assert (done.tokens(), done.text()) == ([BOS] * 3, text)


def test_penalties_see_the_prompt(driver: Driver, model: Path, oracle: SimModel) -> None:
    best = int(np.argmax(oracle.logits([7, 8])[-1]))
    second = int(np.argsort(-oracle.logits([best, 7, 8])[-1])[0])
    commands = [*GREEDY, "set:presence_penalty=1000", "set:max_new_tokens=40", f"init:{model}"]
    done = driver(*commands, f"tokens:{best},{second},7,8", "run")
    assert len(done.tokens()) == 40 == len(set(done.tokens()) - {best, second, 7, 8})


def test_seed(driver: Driver, model: Path) -> None:
    def answers(seed: str) -> list[list[int]]:
        done = driver("set:max_new_tokens=30", f"init:{model}", "prompt:x", "run", "run", env={"RKSIM_SEED": seed})
        return [done.tokens(1), done.tokens(2)]

    first, second = answers("11")
    assert answers("11") == [first, second] and first != second != []
    assert answers("12")[0] != first
    assert answers("")[0] != answers("")[0]  # from the system's entropy


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_max_new_tokens(driver: Driver, model: Path, limit: int) -> None:
    done = driver(*GREEDY, f"set:max_new_tokens={limit}", f"init:{model}", "prompt:Hi", "run")
    assert len(done.tokens()) == limit
    assert (done.states()[-1], done.calls()[-1].token) == (FINISH, -1)


def test_unlimited_runs_until_the_end_token(driver: Driver, model: Path) -> None:
    hot = ["set:temperature=9", "set:top_k=0", "set:top_p=1", "set:repeat_penalty=1", f"init:{model}"]
    done = driver(*hot, "prompt:x", "run", env={"RKSIM_SEED": "5"})
    assert done.calls()[-1].token == EOS and EOS not in done.tokens()


def test_an_answer_goes_on_past_the_context(driver: Driver, model: Path) -> None:
    commands = [*GREEDY, "set:max_context_len=16", "set:max_new_tokens=100", f"init:{model}"]
    done = driver(*commands, "tokens:5,6,7,8,9,10,11,12,13,14,15,16", "run")
    assert len(done.tokens()) == 100 and done.states()[-1] == FINISH


def test_hidden_states(driver: Driver, model: Path, oracle: SimModel) -> None:
    ids = [9, 8, 7, 6]
    done = driver(f"init:{model}", "mode:1", f"tokens:{','.join(map(str, ids))}", "run", "mode:0", "run_async", "wait")
    assert done.states() == [HIDDEN, FINISH]
    logits = oracle.logits(ids)
    assert np.array_equal(oracle.linear("output.weight", done.hidden(), logits.shape[1]), logits)
    assert done.states(2)[-1] == FINISH


@pytest.mark.model
def test_real_model(driver: Driver, smollm2_bundles: Mapping[str, Path]) -> None:
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    model = smollm2_bundles["w8a8"] / "model.sim.gguf"
    done = driver(*GREEDY, "set:max_new_tokens=60", f"init:{model}", f"prompt:{prompt}", "run")
    assert b"Paris" in done.text() and b"<|" not in done.text()
    assert done.states()[-1] == FINISH
