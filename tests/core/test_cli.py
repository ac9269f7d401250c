"""`rk3588` as a user calls it: what goes where, exit codes, and what is not imported."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rk3588.cli import _COMMANDS, cli
from tests.fakes import ROOT, fake_rkllm, journal, scripted_bundle

MAIN = "from rk3588.cli import main; main()"
ANSWER = "banner\ntoken 1 48\ntoken 2 6921\nempty 2"  # "Hi!"
ENDLESS = "banner\nforever 7 61 5\nempty 2"
HEAVY = ("numpy", "transformers", "torch", "paramiko", "starlette", "jinja2", "rkruntime", "gguf", "yaml", "rich")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_rkllm(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def answering(tmp_path: Path) -> Path:
    return scripted_bundle(tmp_path / "bundle", ANSWER)


def environment(library: Path | None) -> dict[str, str]:
    paths = os.pathsep.join(str(ROOT / p) for p in (".", "convert", "runtime"))
    chosen = {"RKLLM_LIBRARY": str(library)} if library else {}
    return {**os.environ, "PYTHONPATH": paths, "RKSIM_SEED": "1", **chosen}


def rk3588(
    *arguments: object, library: Path | None = None, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own; `text` comes through a pipe, else stdin is /dev/null."""
    given = {"stdin": subprocess.DEVNULL} if text is None else {}
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, env=environment(library), input=text, capture_output=True, text=True, timeout=60, **given
    )


def invoke(*arguments: object, text: str | None = None) -> Result:
    """The program in this process: for what only the scripted library's journal can tell."""
    return CliRunner().invoke(cli, [str(a) for a in arguments], input=text, catch_exceptions=False)


def test_importing_the_cli_imports_nothing_heavy() -> None:
    program = "import sys, rk3588.cli; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], env=environment(None), text=True).split()
    assert "click" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_every_command_is_there_and_explains_itself() -> None:
    listed = invoke("--help").stdout
    for name, (_, text) in _COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", listed, re.MULTILINE), name
        assert f"rk3588 {name}" in CliRunner().invoke(cli, [name, "--help"], prog_name="rk3588").stdout


def test_only_the_answer_reaches_stdout(library: Path, answering: Path) -> None:
    done = rk3588("run", answering, "Hello", "--stats", library=library)
    assert (done.returncode, done.stdout) == (0, "Hi!\n")
    assert "I rkllm: rkllm-runtime" in done.stderr
    assert "answer 2 tokens" in done.stderr


def test_json(library: Path, answering: Path) -> None:
    done = rk3588("run", answering, "Hello", "--json", library=library)
    facts = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert {k: facts[k] for k in ("text", "tokens", "finish_reason", "bundle", "dtype")} == {
        "text": "Hi!", "tokens": 2, "finish_reason": "stop", "bundle": "Scripted", "dtype": "w8a8",
    }  # fmt: skip
    assert facts["ttft_ms"] > 0 and facts["decode_tokens_per_s"] > 0
    assert "prompt_tokens" not in facts  # there is no vocabulary to count them with


@pytest.mark.parametrize(
    ("arguments", "text", "sent"),
    [
        (["Hello"], None, "user=Hello;"),
        (["Hello", "-p", "Be brief."], None, "system=Be brief.;user=Hello;"),
        (["Hello", "--raw"], None, "Hello"),
        ([], "from stdin\n", "user=from stdin;"),
    ],
)
def test_what_is_sent(
    library: Path, answering: Path, arguments: list[str], text: str | None, sent: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("RKLLM_LIBRARY", str(library))
    assert invoke("run", answering, *arguments, text=text).stdout == "Hi!\n"
    assert journal(library)[1].startswith(f"run text {sent} mode=0")


def test_a_pipe_is_put_after_the_prompt(library: Path, tmp_path: Path) -> None:
    bundle = scripted_bundle(tmp_path / "b", ANSWER, "{{ raise_exception(messages[0].content | tojson) }}")
    done = rk3588("run", bundle, "Explain:", library=library, text="a\nb\n")
    assert done.stderr.endswith('refuses this conversation: "Explain:\\n\\na\\nb"\n')


def test_options_reach_the_library(library: Path, answering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RKLLM_LIBRARY", str(library))
    chosen = ["--temp", "0.5", "--top-k", "3", "--top-p", "0.25", "--repeat-penalty", "1", "-c", "99", "-n", "7"]
    invoke("run", answering, "x", *chosen)
    assert journal(library)[0].startswith("init ctx=99 new=7 k=3 p=0.25 t=0.5 repeat=1 ")
    invoke("run", answering, "x", "--temp", "0")
    assert journal(library)[0].startswith("init ctx=4096 new=-1 k=1 p=0.9 t=0.8 repeat=1 ")
    assert "Warning: the context is cut to 4096" in invoke("run", answering, "x", "-c", "9000").stderr
    assert journal(library)[0].startswith("init ctx=4096 ")
    assert invoke("run", answering, "x", "-c", "9000", "--beyond-board").stderr.count("\n") == 1
    assert journal(library)[0].startswith("init ctx=9000 ")


def test_max_tokens_end_the_answer(library: Path, tmp_path: Path) -> None:
    bundle = scripted_bundle(tmp_path / "b", ENDLESS)
    facts = json.loads(rk3588("run", bundle, "x", "-n", 3, "--json", library=library).stdout)
    assert (facts["text"], facts["tokens"], facts["finish_reason"]) == ("aaa", 3, "length")


# ESC [2J, CSI, a mark that turns the direction of text round
STEERING = "banner\ntoken 1 1b5b324a\ntoken 2 c29b\ntoken 3 e280ae\ntoken 4 6f6b\nempty 2"


def test_an_answer_does_not_steer_the_terminal(library: Path, tmp_path: Path) -> None:
    """On a terminal it is harmless; a pipe gets what the model said."""
    bundle = scripted_bundle(tmp_path / "b", STEERING)
    assert rk3588("run", bundle, "x", library=library).stdout == "\x1b[2J\x9b\u202eok\n"
    own, terminal = os.openpty()
    command = [sys.executable, "-c", MAIN, "run", str(bundle), "x"]
    try:
        subprocess.run(
            command, env=environment(library), stdin=subprocess.DEVNULL, stdout=terminal, stderr=subprocess.DEVNULL,
            timeout=60, check=True,
        )  # fmt: skip
        said = os.read(own, 1000).decode()
    finally:
        os.close(own)
        os.close(terminal)
    assert "\ufffd[2J\ufffd\ufffdok" in said and "\x1b" not in said
    facts = rk3588("run", bundle, "x", "--json", library=library).stdout
    assert json.loads(facts)["text"] == "\x1b[2J\x9b\u202eok" and not set("\x9b\u202e") & set(facts)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle_of_an_answer(library: Path, tmp_path: Path, number: signal.Signals) -> None:
    bundle = scripted_bundle(tmp_path / "b", ENDLESS)
    command = [sys.executable, "-c", MAIN, "run", str(bundle), "x", "--loop-limit", "0"]
    with subprocess.Popen(
        command, env=environment(library), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(3) == b"aaa"  # it streams: the answer has no end
        process.send_signal(number)
        assert set(process.stdout.read()) <= {ord("a"), ord("\n")}
        said = process.stderr.read().decode()
    assert process.returncode == 128 + number
    assert "Traceback" not in said


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_are_closed(library: Path, answering: Path, tmp_path: Path, closed: str) -> None:
    """As services and scripts start programs. What is said goes nowhere: not into the next file that is opened."""
    words = [sys.executable, "-c", MAIN, "run", str(answering), "hello"]
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *words]
    done = subprocess.run(shell, cwd=tmp_path, env=environment(library), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert bool(done.stdout) == ("1>&-" not in closed)
    shell = [*shell[:4], sys.executable, "-c", MAIN, "board", "list"]
    done = subprocess.run(shell, env=environment(None), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["run", "{answering}", "hello"], ["board", "list"], ["run", "--help"]])
def test_a_disk_that_is_full_is_told_once(library: Path, answering: Path, words: list[str]) -> None:
    command = [sys.executable, "-c", MAIN, *(word.format(answering=answering) for word in words)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=environment(library), stdin=subprocess.DEVNULL, stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 1 and done.stderr.endswith("Error: No space left on device\n"), done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_leaves(library: Path, tmp_path: Path) -> None:
    bundle = scripted_bundle(tmp_path / "b", ENDLESS)
    command = [sys.executable, "-c", MAIN, "run", str(bundle), "x", "--loop-limit", "0"]
    with subprocess.Popen(
        command, env=environment(library), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read().splitlines()[1:] == [b"I rkllm: rkllm-runtime version: 1.1.1"]
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nowhere", "x"], 2, "Error: there is no nowhere: give a folder that rkconvert wrote"),
        (["run", "", "x"], 2, "Error: Invalid value for 'BUNDLE': it is empty: give a path, or . for this folder."),
        (["bundle", "show", ""], 2, "Error: Invalid value for 'BUNDLE': it is empty: give a path, or ."),
        (["adopt", "", "--base", "x"], 2, "Error: there is no '': give a .rkllm file"),
        (["bench", ""], 2, "Error: what to measure is empty: give a bundle, a board or"),
        (["run", "{bundle}"], 2, "Error: the prompt is empty"),
        (["run", "{bundle}", " "], 2, "Error: the prompt is empty"),
        (["run", "{bundle}", "x", "-n", "0"], 2, "Error: max_tokens 0 asks for no answers"),
        (["run", "{bundle}", "x", "-c", "4"], 2, "Error: a context of 4 tokens holds no prompt"),
        (["run", "{bundle}", "x", "--raw", "-p", "y"], 2, "Error: --raw sends the prompt alone"),
        (["run", "{bundle}", "x", "--top-p", "0"], 2, "Error: Invalid value for '--top-p'"),
        (["run", "{bundle}", "x", "--library", "absent.so"], 2, "Error: there is no library absent.so"),
        (["run", "{bare}", "x"], 1, "has no chat_template.jinja: give the model's own with --template FILE, or"),
        (["run", "{failing}", "x"], 1, "Error: the library ended the run with an error"),
        (["run", "{unloadable}", "x"], 1, "rkllm_init failed with -1: the library's own log lines say why"),
        (["chat", "{bundle}", "-f", "absent"], 2, "Error: cannot read absent: No such file or directory"),
        (["chat", "{bare}"], 1, "has no chat_template.jinja: give the model's own with --template FILE, or"),
        (["bundle", "verify", "nowhere"], 2, "Error: there is no nowhere"),
        (["unknown"], 2, "No such command 'unknown': there are run, chat, serve, adopt, bundle, "),
        (["caht"], 2, "No such command 'caht': did you mean 'chat'?"),
        (["bundle", "verfiy"], 2, "No such command 'verfiy': did you mean 'verify'?"),
        (["run", "{bundle}", "x", "--tmp", "0"], 2, "No such option '--tmp': did you mean '--temp'?"),
        (["serve", "{bundle}", "--port", "8080"], 2, "No such option '--port': did you mean '--listen'?"),
        (["run", "{bundle}", "x", "--zzz"], 2, "No such option '--zzz': there are --"),
    ],
)
def test_errors_are_one_sentence(library: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    scripts = {"bundle": ANSWER, "bare": ANSWER, "failing": "null 3", "unloadable": "init -1"}
    found = next((name for name in scripts if f"{{{name}}}" in arguments), None)
    if found:
        template = {} if found != "bare" else {"template": None}
        scripted_bundle(tmp_path / found, scripts[found], **template)
    done = rk3588(*(a.format(**{name: tmp_path / name for name in scripts}) for a in arguments), library=library)
    assert (done.returncode, done.stdout) == (code, "")
    last = done.stderr.splitlines()[-1]
    assert message in last
    assert "Traceback" not in done.stderr


def test_the_twin_answers_alike_each_time(tiny_bundles: Mapping[str, Path]) -> None:
    greedy = ["--temp", "0", "--repeat-penalty", "1", "-n", "12", "--json"]
    first, second = (json.loads(rk3588("run", tiny_bundles["w8a8"], "Hello", *greedy).stdout) for _ in range(2))
    assert first["text"] == second["text"] and first["text"]
    assert first["tokens"] <= 12
    assert first["prompt_tokens"] > 10
    assert first["prefill_tokens_per_s"] > 0


def test_the_twin_stops_when_the_context_is_full(tiny_bundles: Mapping[str, Path]) -> None:
    for seed in range(3):  # a random model may end its answer by itself, but not always
        command = ["run", tiny_bundles["w8a8"], f"Hello {seed}", "--raw", "-c", "64", "--temp", "1.5", "--json"]
        facts = json.loads(rk3588(*command).stdout)
        assert facts["prompt_tokens"] + facts["tokens"] <= 64
        if facts["finish_reason"] == "length":
            assert facts["prompt_tokens"] + facts["tokens"] == 64
            return
    pytest.fail("the model never filled the context")


@pytest.mark.model
def test_smollm2_knows_the_capital_of_france(smollm2_bundles: Mapping[str, Path]) -> None:
    greedy = ["--temp", "0", "--repeat-penalty", "1", "-n", "24"]
    done = rk3588("run", smollm2_bundles["w8a8"], "What is the capital of France?", *greedy)
    assert "Paris" in done.stdout
